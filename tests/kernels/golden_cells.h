#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/codec.h"

namespace sketchkv::testing {

// A small cell whose bytes are kept under tests/golden: inputs are made of integers alone, so that
// they are the same everywhere.
struct GoldenCell {
  std::string file;
  KvLayout layout;
  ProfileRequest request;
  uint32_t num_tokens = 0;
};

std::vector<GoldenCell> GoldenCells();
std::vector<std::byte> EncodeGolden(const GoldenCell& golden, Isa isa);
// What a reader makes of a cell's bytes: decoded keys and values, scores, attention of two queries,
// one after the other.
std::vector<float> AnswersOf(const GoldenCell& golden, std::span<const std::byte> cell, Isa isa);
// The tables a golden cell was made with; empty when its profile uses none.
std::vector<uint8_t> TablesOf(const GoldenCell& golden);

}  // namespace sketchkv::testing
