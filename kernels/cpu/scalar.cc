// Portable kernels: sixteen lanes written as loops. The oracle of the other instruction sets, and
// all there is on machines without them. Everything is in an unnamed namespace, as in the other
// files of its kind.
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.h"

namespace sketchkv {
namespace {

#include "kernels/cpu/lanes_scalar.inc"

constexpr int kTilesTogether = 1;
template <int kDigits>
constexpr int kSixteensTogether = 1;

// sum over nibbles of weight times entry, per tile and query.
template <int kQueries, int kTiles>
void SumEntries(const ScorePlanesArgs& args, uint32_t tile, U (*sums)[kQueries]) {
  const uint8_t* line = args.planes[tile];
  for (int q = 0; q < kQueries; ++q) {
    sums[0][q] = SetU(0);
    for (uint32_t n = 0; n < 8 * args.words; ++n) {
      const uint32_t place = 8 * (n / 8) + 4 * (n % 2) + n % 8 / 2;  // [words][2][4]
      const uint8_t* entries = args.tables[q]->entries + 16 * place;
      const uint32_t weight = args.tables[q]->weights[place];
      const U word = LoadU(line + 64 * (n / 8));
      SKETCHKV_EACH_LANE { sums[0][q].v[i] += weight * entries[word.v[i] >> 4 * (n % 8) & 15]; }
    }
  }
}

// The kernels use what stands before them.
// clang-format off
#include "kernels/cpu/bytes_scalar.inc"
#include "kernels/cpu/kernels.inc"
// clang-format on

}  // namespace

extern const KernelTable kScalarKernels;
const KernelTable kScalarKernels = MakeTable("scalar");

}  // namespace sketchkv
