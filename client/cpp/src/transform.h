#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "client/cpp/src/model_cache.h"
#include "sketchkv/types.h"

namespace sketchkv::client {

// Client::Encode with its deadline given.
[[nodiscard]] absl::StatusOr<std::vector<std::byte>> EncodePart(ClientCore* core,
                                                                ModelCache* models,
                                                                const PutPart& part,
                                                                TimePoint deadline);

// What Client::Decode takes.
struct DecodePart {
  std::string model;
  PartRange range;
  uint32_t num_tokens = 0;
  std::span<const std::byte> cells;
  ElementType type = ElementType::kBf16;
  sketchkv::RawOrder order = sketchkv::RawOrder::kNhd;
};

[[nodiscard]] absl::StatusOr<std::vector<std::byte>> DecodeCells(ClientCore* core,
                                                                 ModelCache* models,
                                                                 const DecodePart& part,
                                                                 TimePoint deadline);

}  // namespace sketchkv::client
