#include <gtest/gtest.h>
#include <xxhash.h>

#include <random>
#include <vector>

#include "kernels/cuda/launch.h"
#include "tests/gpu/device_array.h"

// Checksums made on the GPU are those the CPU makes.
namespace sketchkv::testing {
namespace {

TEST(GpuChecksumTest, IsTheLowerHalfOfTheHashOfTheLibrary) {
  SKETCHKV_NEED_GPU();
  std::mt19937_64 random(1);
  std::vector<uint32_t> sizes;
  for (uint32_t bytes = 64; bytes <= 5 * 1024; bytes += 64) sizes.push_back(bytes);
  for (const uint32_t bytes : {1 << 15, (1 << 15) + 64, (1 << 20) - 64}) sizes.push_back(bytes);
  size_t total = 0;
  for (const uint32_t bytes : sizes) total += bytes;
  std::vector<uint8_t> cells(total);
  for (uint8_t& byte : cells) byte = static_cast<uint8_t>(random());
  const DeviceArray<uint8_t> on_gpu{std::span<const uint8_t>(cells)};
  std::vector<cuda::StoredCell> stored;
  std::vector<uint32_t> want;
  size_t at = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const uint64_t seed = i % 5 == 0 ? 0 : random();
    stored.push_back({on_gpu.data() + at, seed, sizes[i]});
    want.push_back(static_cast<uint32_t>(XXH3_64bits_withSeed(cells.data() + at, sizes[i], seed)));
    at += sizes[i];
  }
  const DeviceArray<cuda::StoredCell> args{std::span<const cuda::StoredCell>(stored)};
  DeviceArray<uint32_t> checksums(sizes.size() + 1);
  checksums.Fill(0x5A);
  CheckCuda(cuda::LaunchChecksum({.cells = args.data(),
                                  .num_cells = static_cast<uint32_t>(sizes.size()),
                                  .checksums = checksums.data()},
                                 nullptr));
  std::vector<uint32_t> got = checksums.ToHost();
  EXPECT_EQ(got.back(), 0x5A5A5A5Au) << "nothing beyond it is written";
  got.pop_back();
  EXPECT_EQ(got, want);
}

}  // namespace
}  // namespace sketchkv::testing
