#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "service/engine/part.h"
#include "service/engine/payload.h"
#include "service/pool/block_pool.h"

namespace sketchkv {

// The cells of a range in the order [layer][head].
[[nodiscard]] std::vector<WriteHandle::Cell> CellsOf(const CellRange& range);

// `status` with the cell it is of.
[[nodiscard]] absl::Status AtCell(const WriteHandle::Cell& cell, const absl::Status& status);

// Makes encoded cells of a payload of the right size, raw or encoded. Thread-safe. All referred to
// outlive it.
class CellSource {
 public:
  CellSource(const Model& model, const PartLayout& part, const CellRange& range, bool encoded,
             const Payload& payload);

  // Writes one whole cell. Raw values are read once each, encoded cells copied before they are
  // validated: bytes that change meanwhile (a peer's shared memory) give a cell that is either
  // valid or refused. INVALID_ARGUMENT naming the cell.
  [[nodiscard]] absl::Status Fill(const WriteHandle::Cell& cell, std::span<std::byte> out) const;
  // Where the bytes of a layer end in the payload.
  [[nodiscard]] uint64_t LayerEnd(uint32_t layer) const;

 private:
  const BlockCodec& codec_;
  const uint32_t num_tokens_;
  const CellRange range_;
  const RawPartFormat raw_;
  const bool encoded_;
  const Payload& payload_;
};

}  // namespace sketchkv
