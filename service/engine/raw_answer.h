#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/engine/part.h"
#include "service/pool/block_pool.h"

namespace sketchkv {

// Cells decoded for somebody. The model outlives it.
struct RawAnswer {
  const Model& model;
  CellRange range;
  uint32_t num_tokens;
  DType dtype;
  RawOrder order;

  // Of some of its layers, as a payload of their own.
  [[nodiscard]] RawPartFormat Format(const CellRange& layers) const {
    return {model.layout(), layers, num_tokens, order, dtype, dtype};
  }
  [[nodiscard]] PartLayout Layout() const;
  // Decodes one cell to its place in a payload of `format`.
  [[nodiscard]] absl::Status DecodeCell(const RawPartFormat& format, const WriteHandle::Cell& cell,
                                        std::span<const std::byte> from, std::byte* payload) const;
};

// Decodes some layers of an answer to `out`, which has the bytes of `format`, and runs `meanwhile`.
using DecodeLayers =
    std::function<absl::Status(const CellRange& layers, const RawPartFormat& format, std::byte* out,
                               const std::function<void()>& meanwhile)>;

// Decodes `answer` some layers at a time and gives them to `sink`, each step's bytes while they are
// in a cache; the checksum of a step is made while the next is decoded. Returns that of all.
[[nodiscard]] absl::StatusOr<uint64_t> DecodeInSteps(const RawAnswer& answer,
                                                     const DecodeLayers& decode, PartSink* sink);

}  // namespace sketchkv
