#include "kernels/cuda/xxh3.cuh"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <random>
#include <vector>

// The lanes' shares of a hash, put together on the host, are libxxhash's.
namespace sketchkv::cuda {
namespace {

uint64_t HashLong(const std::vector<uint64_t>& words, uint64_t seed) {
  uint64_t hash = 0;
  for (uint32_t p = 0; p < 4; ++p) {  // a pair of accumulators
    Xxh3Pair sums = Xxh3Start(p);
    uint64_t merge = 0;
    const size_t lines = words.size() / 8;
    for (size_t begin = 0; begin < lines; begin += kXxh3SectionLines) {
      const size_t end = std::min(lines, begin + kXxh3SectionLines);
      // From the last lane to the first: their order does not matter.
      for (uint32_t lane = 28 + p; lane < 32; lane -= 4) {
        const Xxh3LaneKeys keys = MakeXxh3LaneKeys(kXxh3Secret, seed, lane);
        for (uint32_t k = 0; k < kXxh3LaneLines; ++k) {
          const size_t line = begin + lane / 4 + 8 * k;
          if (line >= end) continue;
          const uint64_t* const at = words.data() + line * 8 + 2 * p;
          Xxh3Add({at[0], at[1]}, line + 1 == lines ? keys.last : keys.lines[k], &sums);
        }
      }
      const Xxh3LaneKeys keys = MakeXxh3LaneKeys(kXxh3Secret, seed, p);
      if (end < lines) sums = Xxh3Scramble(sums, keys.scramble);
      merge = Xxh3Merge(sums, keys.merge);
    }
    hash += merge;
  }
  return Xxh3Finish(hash, words.size() * sizeof(uint64_t));
}

TEST(Xxh3Test, IsTheHashOfTheLibrary) {
  std::mt19937_64 random(1);
  for (uint32_t bytes = 64; bytes <= 9 * 1024; bytes += 64) {
    std::vector<uint64_t> words(bytes / sizeof(uint64_t));
    for (uint64_t& word : words) word = random();
    for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}, uint64_t{random()}}) {
      const uint64_t hash = bytes < kXxh3LongBytes
                                ? Xxh3Short(kXxh3Secret, words.data(), bytes, seed)
                                : HashLong(words, seed);
      ASSERT_EQ(hash, XXH3_64bits_withSeed(words.data(), bytes, seed)) << bytes << " " << seed;
    }
  }
}

}  // namespace
}  // namespace sketchkv::cuda
