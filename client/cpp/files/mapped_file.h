#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace sketchkv {

// A file mapped read-only. Movable; the bytes live as long as the object. As with any mapping, a
// file that another process cuts short meanwhile ends this one with SIGBUS.
class MappedFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED or INTERNAL with the path and the reason; INVALID_ARGUMENT when
  // `path` is not a regular file.
  [[nodiscard]] static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Writes `pieces` one after another to `path` through a temporary file beside it, so that nobody
// sees half a file. INTERNAL with the path and the reason.
[[nodiscard]] absl::Status WriteFileAtomically(const std::string& path,
                                               std::span<const std::span<const std::byte>> pieces);

}  // namespace sketchkv
