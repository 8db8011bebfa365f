#include "kernels/cuda/launching.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/xxh3.cuh"

// Checksums of cells in a GPU's memory. A warp a cell: within a section lanes read side by side,
// and the words of the next are on their way while the sums of one are folded.
namespace sketchkv::cuda {
namespace {

__device__ inline uint64_t ShuffleXor(uint64_t x, uint32_t lanes) {
  return __shfl_xor_sync(~0u, static_cast<unsigned long long>(x), lanes);
}

// A lane's words of a section of `lines` lines.
struct SectionWords {
  Xxh3Pair lines[kXxh3LaneLines];
};
__device__ inline SectionWords LoadSection(const uint8_t* section, uint32_t lines, uint32_t lane) {
  SectionWords words = {};
#pragma unroll
  for (uint32_t k = 0; k < kXxh3LaneLines; ++k) {
    const uint32_t line = lane / 4 + 8 * k;
    if (line >= lines) break;
    const auto* const at = section + line * kXxh3LineBytes + lane % 4 * sizeof(Xxh3Pair);
    const ulonglong2 loaded = *reinterpret_cast<const ulonglong2*>(at);
    words.lines[k] = {loaded.x, loaded.y};
  }
  return words;
}

// Adds a section to the accumulators, the same in all eight lanes that have them. Lines from
// `lines` on are not there; `last`: the one before them is the cell's last.
__device__ inline void AddSection(const SectionWords& words, const Xxh3LaneKeys& keys,
                                  uint32_t lines, bool last, uint32_t lane, Xxh3Pair* sums) {
  Xxh3Pair section = {};
#pragma unroll
  for (uint32_t k = 0; k < kXxh3LaneLines; ++k) {
    const uint32_t line = lane / 4 + 8 * k;
    if (line >= lines) break;
    Xxh3Add(words.lines[k], last && line + 1 == lines ? keys.last : keys.lines[k], &section);
  }
#pragma unroll
  for (uint32_t lanes = 4; lanes < 32; lanes *= 2) {
    section.a += ShuffleXor(section.a, lanes);
    section.b += ShuffleXor(section.b, lanes);
  }
  sums->a += section.a;
  sums->b += section.b;
}

__device__ inline uint64_t HashLong(const Xxh3Secret& secret, const StoredCell& cell,
                                    uint32_t lane) {
  const Xxh3LaneKeys keys = MakeXxh3LaneKeys(secret, cell.seed, lane);
  Xxh3Pair sums = Xxh3Start(lane);
  uint32_t left = cell.bytes / kXxh3LineBytes;
  const uint8_t* at = cell.cell;
  SectionWords words = LoadSection(at, left, lane);
  while (left > kXxh3SectionLines) {
    at += kXxh3SectionLines * kXxh3LineBytes;
    const SectionWords next = LoadSection(at, left - kXxh3SectionLines, lane);
    AddSection(words, keys, kXxh3SectionLines, /*last=*/false, lane, &sums);
    sums = Xxh3Scramble(sums, keys.scramble);
    words = next;
    left -= kXxh3SectionLines;
  }
  AddSection(words, keys, left, /*last=*/true, lane, &sums);
  uint64_t merged = Xxh3Merge(sums, keys.merge);
  merged += ShuffleXor(merged, 1);
  merged += ShuffleXor(merged, 2);
  return Xxh3Finish(merged, cell.bytes);
}

__global__ void __launch_bounds__(kThreads)
    Checksum(const __grid_constant__ Xxh3Secret secret, const __grid_constant__ ChecksumArgs args) {
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (index >= args.num_cells) return;
  const StoredCell cell = args.cells[index];
  const uint64_t hash =
      cell.bytes >= kXxh3LongBytes
          ? HashLong(secret, cell, lane)
          : Xxh3Short(secret, reinterpret_cast<const uint64_t*>(cell.cell), cell.bytes, cell.seed);
  if (lane == 0) args.checksums[index] = static_cast<uint32_t>(hash);
}

}  // namespace

cudaError_t LaunchChecksum(const ChecksumArgs& args, cudaStream_t stream) {
  if (args.num_cells == 0) return cudaSuccess;
  const uint32_t blocks = (args.num_cells + kWarps - 1) / kWarps;
  return LaunchKernel(Checksum, blocks, kThreads, 0, stream, kXxh3Secret, args);
}

}  // namespace sketchkv::cuda
