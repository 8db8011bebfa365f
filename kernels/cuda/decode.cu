#include "kernels/cuda/decode_codes.cuh"
#include "kernels/cuda/decode_signs.cuh"
#include "kernels/cuda/launching.cuh"

// Cells to rows. Warps take two tiles at a time.
namespace sketchkv::cuda {
namespace {

// Thread blocks that a processor holds: of rows in registers, and of those that are put together in
// shared memory.
constexpr uint32_t kBlocksOfProcessor = 3;
template <ValueKind kValues>
constexpr uint32_t kValueBlocks = kValues == ValueKind::kRanges ? 6 : kBlocksOfProcessor;

template <KeyKind kKeys, RowType kType>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
    DecodeKeys(const __grid_constant__ CodecPlan plan, const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  AllowNextLaunch();
  const uint32_t pairs = NumPairs(plan.cell, args.num_cells);
  if constexpr (kKeys == KeyKind::kSigns) {
    auto* const matrix = reinterpret_cast<SignMatrix*>(shared);
    matrix->Make(plan.cell);
    for (uint32_t pair = WarpNumber(); pair < pairs; pair += NumWarps()) {
      DecodeSigns<kType>(plan.cell, args, *matrix, pair);
    }
  } else {
    __shared__ CodeTables tables;
    tables.Make(plan.keys, plan.spread, plan.cell.key_signs[0]);
    const RowRoom<kType> room = {SharedAddress(shared) + threadIdx.x / 32 * RowRoom<kType>::kBytes};
    for (uint32_t pair = WarpNumber(); pair < pairs; pair += NumWarps()) {
      const Token own = FindToken(plan.cell, args.cells, args.num_cells, pair);
      if (own.cell.cell != nullptr) {
        float x[kDim];
        DecodeKeyCodes<kKeys>(plan.cell, own, tables, x);
        PutRow<kType>(x, room.RowOf(threadIdx.x % 32));
      }
      StoreRows(own, own.cell.keys, args.key_stride, room);
    }
  }
}

template <ValueKind kValues, RowType kType>
__global__ void __launch_bounds__(kThreads, kValueBlocks<kValues>)
    DecodeValues(const __grid_constant__ CodecPlan plan, const __grid_constant__ DecodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  __shared__ CodeTables tables;
  tables.Make(plan.values, plan.values, plan.cell.value_signs);
  const RowRoom<kType> room = {SharedAddress(shared) + threadIdx.x / 32 * RowRoom<kType>::kBytes};
  const uint32_t row = room.RowOf(threadIdx.x % 32);
  const uint32_t pairs = NumPairs(plan.cell, args.num_cells);
  for (uint32_t pair = WarpNumber(); pair < pairs; pair += NumWarps()) {
    const Token own = FindToken(plan.cell, args.cells, args.num_cells, pair);
    uint32_t words[kDim / 16];
    LoadLines(plan.cell, own, words);
    if (own.cell.cell != nullptr) {
      if constexpr (kValues == ValueKind::kRotated) {
        float x[kDim];
        DecodeRotated(plan.cell, own, tables, words, x);
        PutRow<kType>(x, row);
      } else {
        DecodeRanges<kType>(plan.cell, own, words, row);
      }
    }
    StoreRows(own, own.cell.values, args.value_stride, room);
  }
  // Begun while keys are decoded; who waits for values waits for those too.
  WaitForLaunchBefore();
}

}  // namespace

cudaError_t LaunchDecode(const CodecPlan& plan, const DecodeArgs& args, cudaStream_t stream) {
  if (args.num_cells == 0) return cudaSuccess;
  const uint32_t pairs = NumPairs(plan.cell, args.num_cells);
  return WithRowType(args.type, [&](auto type) {
    constexpr RowType kType = decltype(type)::value;
    constexpr uint32_t kRoom = kWarps * RowRoom<kType>::kBytes;
    const cudaError_t keys = WithKeyKind(plan.cell, [&](auto kind) {
      constexpr KeyKind kKeys = decltype(kind)::value;
      constexpr uint32_t kBytes = kKeys == KeyKind::kSigns ? sizeof(SignMatrix) : kRoom;
      return LaunchPersistent(DecodeKeys<kKeys, kType>, Begin::kInOrder, pairs, kBlocksOfProcessor,
                              kBytes, stream, plan, args);
    });
    if (keys != cudaSuccess) return keys;
    return WithValueKind(plan.cell, [&](auto kind) {
      constexpr ValueKind kValues = decltype(kind)::value;
      return LaunchPersistent(DecodeValues<kValues, kType>, Begin::kEarly, pairs,
                              kValueBlocks<kValues>, kRoom, stream, plan, args);
    });
  });
}

}  // namespace sketchkv::cuda
