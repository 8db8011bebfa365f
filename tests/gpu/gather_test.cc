#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/gpu/device_array.h"

// Queries that a launch gathers are those of the rows asked for, to the bit, and what is not finite
// among them is told.
namespace sketchkv::testing {
namespace {

constexpr uint32_t kPoison = 0x7FA5A5A5;  // a NaN

struct Shape {
  uint32_t tokens, heads, group, dim;
  uint32_t row_begin, num_rows;  // of [tokens * group]
  bool on_host = false;

  [[nodiscard]] size_t size() const { return size_t{tokens} * heads * group * dim; }
  [[nodiscard]] size_t gathered() const { return size_t{heads} * num_rows * dim; }
};

// The kernel's own statement of what it does, a number at a time.
std::vector<float> Expected(const Shape& shape, const std::vector<float>& queries) {
  std::vector<float> rows;
  for (uint32_t head = 0; head < shape.heads; ++head) {
    for (uint32_t row = shape.row_begin; row < shape.row_begin + shape.num_rows; ++row) {
      const uint32_t token = row / shape.group, query = row % shape.group;
      for (uint32_t c = 0; c < shape.dim; ++c) {
        rows.push_back(
            queries[((token * shape.heads + head) * shape.group + query) * shape.dim + c]);
      }
    }
  }
  return rows;
}

class GpuGatherTest : public ::testing::Test {
 protected:
  void SetUp() override { SKETCHKV_NEED_GPU(); }
  ~GpuGatherTest() override {
    for (void* memory : pinned_) (void)cudaFreeHost(memory);
  }

  template <typename T>
  T* Pinned(size_t count) {
    void* memory = nullptr;
    CheckCuda(cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocDefault));
    pinned_.push_back(memory);
    return static_cast<T*>(memory);
  }

  // Gathers one piece a shape in one launch and looks at all of it; bad[i]: a number of piece i's
  // rows that is replaced by infinity.
  void Check(const std::vector<Shape>& shapes, const std::vector<size_t>& bad = {}) {
    std::vector<DeviceArray<float>> inputs, outputs;
    std::vector<std::vector<float>> expected;
    uint32_t* const flags = Pinned<uint32_t>(shapes.size());
    std::fill_n(flags, shapes.size(), 0);
    cuda::GatherArgs args{};
    for (const Shape& shape : shapes) {
      std::vector<float> queries(shape.size());
      for (float& x : queries) x = std::normal_distribution<float>()(random_);
      const size_t i = args.num_pieces++;
      expected.push_back(Expected(shape, queries));
      if (i < bad.size()) {
        const float marked = expected[i][bad[i]];
        *std::find(queries.begin(), queries.end(), marked) = INFINITY;
        expected[i] = Expected(shape, queries);
      }
      const float* from = nullptr;
      if (shape.on_host) {
        from =
            std::copy(queries.begin(), queries.end(), Pinned<float>(shape.size())) - shape.size();
      } else {
        from = inputs.emplace_back(std::span<const float>(queries)).data();
      }
      std::vector<float> poison(shape.gathered() + 1, std::bit_cast<float>(kPoison));
      outputs.emplace_back(std::span<const float>(poison));
      args.pieces[i] = {.from = from,
                        .to = outputs.back().data(),
                        .not_finite = flags + i,
                        .num_heads = shape.heads,
                        .group = shape.group,
                        .row_begin = shape.row_begin,
                        .num_rows = shape.num_rows,
                        .dim = shape.dim};
    }
    CheckCuda(cuda::LaunchGather(args, nullptr));
    CheckCuda(cudaDeviceSynchronize());
    for (size_t i = 0; i < shapes.size(); ++i) {
      std::vector<float> got = outputs[i].ToHost();
      EXPECT_EQ(std::bit_cast<uint32_t>(got.back()), kPoison) << "nothing beyond it is written";
      got.pop_back();
      EXPECT_EQ(got, expected[i]) << "piece " << i;
      EXPECT_EQ(flags[i], i < bad.size() ? 1u : 0u) << "piece " << i;
    }
  }

 private:
  std::mt19937_64 random_{1};
  std::vector<void*> pinned_;
};

TEST_F(GpuGatherTest, RowsComeInTheOrderOfALaunchFromTheCardAndTheHost) {
  for (const bool on_host : {false, true}) {
    Check({{1, 8, 4, 128, 0, 4, on_host}});
    Check({{5, 3, 3, 192, 7, 8, on_host}});  // rows of several tokens, from the middle of one
    Check({{2, 1, 12, 576, 8, 8, on_host}});
    Check({{1, 7, 1, 1, 0, 1, on_host}});
  }
}

TEST_F(GpuGatherTest, PiecesOfOneLaunchMayDiffer) {
  Check({{1, 8, 4, 128, 0, 4}, {3, 2, 5, 80, 2, 8, true}, {1, 1, 1, 640, 0, 1}});
  Check(std::vector<Shape>(cuda::kMaxGatherPieces, {1, 8, 8, 128, 0, 8}));
}

TEST_F(GpuGatherTest, WhatIsNotFiniteIsToldOfItsPieceAlone) {
  const std::vector<Shape> shapes = {
      {1, 8, 4, 128, 0, 4}, {1, 2, 8, 130, 0, 8}, {1, 1, 4, 64, 0, 4}};
  Check(shapes, {0});
  Check(shapes, {8 * 4 * 128 - 1, 2 * 8 * 130 - 1});
}

TEST_F(GpuGatherTest, NoPiecesAreNoLaunch) {
  cuda::GatherArgs args{};
  EXPECT_EQ(cuda::LaunchGather(args, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace sketchkv::testing
