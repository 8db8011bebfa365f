#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "service/pool/block.h"

namespace sketchkv {

class PoolState;

// Where the cells of a commit were written: to the host slot, and to that on the GPU if there is
// one; or to that on the GPU alone, so that the host bytes are stale until they are written back.
enum class HostBytes { kWritten, kStale };

// Claim on some cells of a block that is being written. Movable; an uncommitted claim gives its
// cells back when it is destroyed, and a block that is left with no cell at all disappears.
class WriteHandle {
 public:
  WriteHandle(WriteHandle&&) noexcept;
  WriteHandle& operator=(WriteHandle&&) noexcept;
  ~WriteHandle();

  // The whole slot [slot_bytes]. Only the claimed cells may be written, only before Commit.
  [[nodiscard]] std::span<std::byte> slot() const;
  // The block's slot on the GPU [slot_bytes]: addresses of the second tier. Empty: it has none.
  [[nodiscard]] std::span<std::byte> gpu_slot() const;

  struct Cell {
    uint32_t layer = 0;
    uint32_t head = 0;
  };
  // The cells to write: those of the range that nobody wrote before. Empty: all were there.
  [[nodiscard]] std::span<const Cell> claimed() const;

  struct CommitResult {
    bool sealed = false;  // all cells of the block are there now
  };
  // Publishes the claimed cells with one checksum each, in the order of claimed(). Where there is a
  // gpu_slot, its cells are written as well. Errors:
  //   NOT_FOUND            the block was deleted meanwhile, and stays deleted
  //   UNAVAILABLE          kStale, and the GPU was closed meanwhile: the cells are lost
  //   FAILED_PRECONDITION  kStale without a gpu_slot; or the claim is committed already
  [[nodiscard]] absl::StatusOr<CommitResult> Commit(std::span<const uint32_t> checksums,
                                                    HostBytes host = HostBytes::kWritten);

 private:
  friend class PoolState;
  struct Claim;
  explicit WriteHandle(std::unique_ptr<Claim> claim);

  std::unique_ptr<Claim> claim_;  // null only after a move
};

// Pins on sealed blocks, root first where they are a chain. Movable; destroying it unpins. The
// bytes stay in place and unchanged while pinned, even after a delete.
class ReadPins {
 public:
  ReadPins();
  ReadPins(ReadPins&&) noexcept;
  ReadPins& operator=(ReadPins&&) noexcept;
  ~ReadPins();

  [[nodiscard]] size_t size() const;
  [[nodiscard]] BlockView operator[](size_t i) const;
  // The bytes of each block; looks at nothing else of it.
  [[nodiscard]] std::span<const std::span<const std::byte>> bytes() const;
  // Where each block lies on the GPU, null where it does not; parallel to bytes(). A block may get
  // a place there while it is pinned, but not lose the one that is shown here.
  [[nodiscard]] std::span<std::byte* const> gpu() const;
  // Whether any block's `host_stale` is set; looks at no block.
  [[nodiscard]] bool any_host_stale() const;
  // Tokens before each block, and of all at last: [size() + 1]. Made at the first call and kept, so
  // that a decode loop over a lease does not visit thousands of blocks for every layer.
  // Thread-safe.
  [[nodiscard]] std::span<const uint64_t> token_begin() const;
  // Where runs of blocks end, the last at size(): neighbours with no place on the GPU; or with one,
  // of which all but the last are full. Made and kept as token_begin.
  [[nodiscard]] std::span<const size_t> run_ends() const;

 private:
  friend class PoolState;
  struct Pinned;
  explicit ReadPins(std::unique_ptr<Pinned> pinned);

  std::unique_ptr<Pinned> pinned_;  // null: no pin
};

// A slot on the GPU for a stored block that has none there yet. Keeps the block pinned, which is no
// use of it. Movable; without Commit the slot is given back when it is destroyed.
class PromotionHandle {
 public:
  PromotionHandle(PromotionHandle&&) noexcept;
  PromotionHandle& operator=(PromotionHandle&&) noexcept;
  ~PromotionHandle();

  // What to copy, which has no copy yet, and the addresses in the second tier where to
  // [slot_bytes].
  [[nodiscard]] BlockView block() const;
  [[nodiscard]] std::span<std::byte> gpu_slot() const;

  // All bytes are there: pins from now on show them. False: the block was deleted or the GPU closed
  // meanwhile, and the slot is given back. Ends the handle.
  bool Commit();

 private:
  friend class PoolState;
  struct Promotion;
  explicit PromotionHandle(std::unique_ptr<Promotion> promotion);

  std::unique_ptr<Promotion> promotion_;  // null after a move or Commit
};

}  // namespace sketchkv
