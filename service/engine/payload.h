#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/codec.h"

namespace sketchkv {

// Uninitialised memory, aligned for cells.
[[nodiscard]] std::shared_ptr<std::byte> NewBytes(uint64_t size);

// Bytes in order, in as many fragments as they came in: a payload is never joined to be read. Cheap
// to copy; a copy refers to the same bytes.
class Payload {
 public:
  struct Fragment {
    uint64_t begin = 0;  // offset of its first byte in the payload
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> owner;  // keeps the bytes alive; null: the caller does

    [[nodiscard]] uint64_t end() const { return begin + bytes.size(); }
  };

  Payload() = default;
  // One fragment, which the caller keeps alive.
  Payload(std::span<const std::byte> bytes) { Append(bytes, nullptr); }  // NOLINT: it is one

  void Append(std::span<const std::byte> bytes, std::shared_ptr<const void> owner);
  void Append(const Payload& more);

  [[nodiscard]] uint64_t size() const { return fragments_.empty() ? 0 : fragments_.back().end(); }
  [[nodiscard]] std::span<const Fragment> fragments() const { return fragments_; }

  // The bytes [begin, end).
  [[nodiscard]] Payload Sub(uint64_t begin, uint64_t end) const;
  // Copies the out.size() bytes from `offset` on.
  void CopyTo(uint64_t offset, std::span<std::byte> out) const;
  // `count` rows of `row_bytes`, the first at `offset`, each `stride_bytes` behind the last: in
  // place where one fragment holds all of them, else gathered into `scratch` [count * row_bytes].
  [[nodiscard]] RowsView Rows(uint64_t offset, uint64_t stride_bytes, uint64_t row_bytes,
                              uint64_t count, std::byte* scratch) const;
  // All bytes, for what is small.
  [[nodiscard]] std::string ToString() const;

 private:
  [[nodiscard]] const Fragment* At(uint64_t offset) const;
  // Copies from `offset`, which lies in *fragment, and moves *fragment to the last one read.
  static void Copy(const Fragment** fragment, uint64_t offset, std::span<std::byte> out);

  std::vector<Fragment> fragments_;  // none is empty
};

}  // namespace sketchkv
