#pragma once

#include <cstddef>
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

}  // namespace sketchkv::testing
