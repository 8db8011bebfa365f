#include "kernels/cuda/encode_values.cuh"
#include "kernels/cuda/launching.cuh"

// Rows to cells. A warp takes two tiles, a token a lane: its rows come to shared memory, once, and
// from there to registers. Once they are there the next ones are on their way.
namespace sketchkv::cuda {
namespace {

// Copies under way to shared memory; zeros for tokens that are not there.
template <RowType kType>
__device__ void CopyRows(const uint8_t* rows, size_t stride, const Token& own,
                         const RowRoom<kType>& room) {
  const uint32_t left = own.Left();
  room.EachChunk(own, rows, stride, [&](uint32_t to, const uint8_t* from, uint32_t token) {
    CopyAsync(to, from, token < left);
  });
  CommitCopies();
}

// The bits of the largest magnitude of the lane's row.
template <RowType kType>
__device__ uint32_t LargestBits(uint32_t row) {
  uint32_t largest = 0;
#pragma unroll
  for (uint32_t i = 0; i < RowRoom<kType>::kChunks; ++i) {
    const uint4 chunk = LoadShared(row + 16 * i);
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (const uint32_t word : words) {
      if constexpr (kType == RowType::kFp32) {
        largest = max(largest, word & 0x7FFFFFFFu);
      } else {
        largest = __vmaxu2(largest, word & 0x7FFF7FFFu);
      }
    }
  }
  if constexpr (kType == RowType::kFp32) return largest;
  largest = max(largest & 0xFFFF, largest >> 16);
  if constexpr (kType == RowType::kBf16) return largest << 16;
  return __float_as_uint(__half2float(__ushort_as_half(static_cast<uint16_t>(largest))));
}

template <RowType kType>
__device__ bool IsFinite(uint32_t row, uint32_t channel) {
  uint32_t exponents = 0x7F800000u, word;
  const uint32_t at = row + channel * BytesOf(kType);
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(word) : "r"(at & ~3u));
  if constexpr (kType != RowType::kFp32) {
    word = (at & 2) != 0 ? word : word << 16;
    exponents = kType == RowType::kBf16 ? 0x7F800000u : 0x7C000000u;
  }
  return (word & exponents) != exponents;
}

// Keeps what the caller must know of keys (0) or values (1).
template <RowType kType>
__device__ void Check(const Token& own, uint32_t part, uint32_t row, EncodeArgs::Checks* checks) {
  const uint32_t mine = own.present ? LargestBits<kType>(row) : 0;
  uint32_t largest = mine;
#pragma unroll
  for (uint32_t h = 1; h < kTileTokens; h *= 2) {
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, h));
  }
  if (own.cell.cell == nullptr) return;
  if (own.token == 0) atomicMax(&checks[own.index].largest[part], largest);
  if (mine < 0x7F800000u) return;
  uint32_t channel = 0;
  while (channel + 1 < kDim && IsFinite<kType>(row, channel)) ++channel;
  // The first is the smallest; 0 is none, so they are kept as what is left to 2^32.
  const uint32_t at = (own.tile * kTileTokens + own.token) * kDim + channel;
  atomicMax(&checks[own.index].not_finite[part], 0u - 1 - at);
}

// kernels/cpu/cpu_encode.cc: what a cell of that largest number is divided by.
__device__ int CellExponent(uint32_t largest) {
  if (largest == 0 || largest >= 0x7F800000u) return 0;
  const int exponent = ilogbf(__uint_as_float(largest));
  return exponent >= -12 && exponent <= 32 ? 0 : exponent;
}

// A warp's way through the cells of a launch.
template <typename Part, RowType kType>
class Encoder {
 public:
  __device__ Encoder(const CodecPlan& plan, const EncodeArgs& args, Work<kType>* work)
      : plan_(plan),
        args_(args),
        work_(*work),
        stride_(Part::kNumber == 0 ? args.key_stride : args.value_stride),
        pairs_(NumPairs(plan.cell, args.num_cells)) {}

  // All of them. Warps of a thread block go round equally often.
  __device__ void Once() {
    uint32_t pair = WarpNumber();
    Token own = Find(pair);
    Copy(own);
    for (uint32_t first = blockIdx.x * kWarps; first < pairs_; first += NumWarps()) {
      pair += NumWarps();
      const Token next = Find(pair);
      if constexpr (Part::kSearches) KeepTogether<false>();
      WaitForCopies<0>();
      __syncwarp();
      Check<kType>(own, Part::kNumber, work_.room.RowOf(threadIdx.x % 32), args_.checks);
      Part::template Encode<false>(plan_, own, work_, [&] {
        __syncwarp();
        Copy(next);
      });
      own = next;
    }
  }

  // Those whose largest number, found by the launch before, wants an exponent.
  __device__ void Again() {
    for (uint32_t first = WarpNumber() * 32; first < pairs_; first += NumWarps() * 32) {
      const uint32_t tile = (first + threadIdx.x % 32) * 2;
      uint32_t wanted = __ballot_sync(
          kAllLanes, Exponent(IndexOf(tile)) != 0 || Exponent(IndexOf(tile + 1)) != 0);
      for (; wanted != 0; wanted &= wanted - 1) {
        Token own = Find(first + __ffs(wanted) - 1);
        Copy(own);
        WaitForCopies<0>();
        __syncwarp();
        work_.exponent = Exponent(own.index);
        if (work_.exponent == 0) own.cell.cell = nullptr;
        Part::template Encode<true>(plan_, own, work_, [] {});
        __syncwarp();
      }
    }
  }

 private:
  __device__ Token Find(uint32_t pair) const {
    return FindToken(plan_.cell, args_.cells, args_.num_cells, pair);
  }
  __device__ void Copy(const Token& own) const {
    CopyRows(Part::kNumber == 0 ? own.cell.keys : own.cell.values, stride_, own, work_.room);
  }
  __device__ uint32_t IndexOf(uint32_t tile) const { return tile >> plan_.cell.block_tiles_log2; }
  __device__ int Exponent(uint32_t index) const {
    return index < args_.num_cells ? CellExponent(args_.checks[index].largest[Part::kNumber]) : 0;
  }

  const CodecPlan& plan_;
  const EncodeArgs& args_;
  Work<kType>& work_;
  const size_t stride_;
  const uint32_t pairs_;
};

template <typename Part, RowType kType>
constexpr uint32_t kSharedBytes = kWarps*(RowRoom<kType>::kBytes +
                                          (Part::kSearches ? Magnitudes::kWords * 4 : 0)) +
                                  Part::kTransforms* SignMasks<kType>::kWords * 4;

// Shared memory: the warps' rooms for rows, their bins, masks.
template <typename Part, RowType kType, bool kAgain>
__global__ void __launch_bounds__(kThreads, Part::kBlocksOfProcessor)
    Encode(const __grid_constant__ CodecPlan plan, const __grid_constant__ EncodeArgs args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const uint32_t warp = threadIdx.x / 32;
  uint8_t* const bins = shared + kWarps * RowRoom<kType>::kBytes;
  auto* const masks =
      reinterpret_cast<uint32_t*>(bins + (Part::kSearches ? kWarps * Magnitudes::kWords * 4 : 0));
#pragma unroll
  for (uint32_t transform = 0; transform != Part::kTransforms; ++transform) {
    constexpr uint32_t kWords = SignMasks<kType>::kWords;
    for (uint32_t i = threadIdx.x; i < kWords; i += kThreads) {
      masks[transform * kWords + i] =
          SignMasks<kType>::Word(Part::SignsOf(plan.cell, transform), i, Part::kInverted);
    }
  }
  __syncthreads();
  AllowNextLaunch();
  Work<kType> work = {{SharedAddress(shared) + warp * RowRoom<kType>::kBytes},
                      SharedAddress(masks),
                      reinterpret_cast<uint32_t*>(bins) + warp * Magnitudes::kWords,
                      0};
  Encoder<Part, kType> encoder(plan, args, &work);
  if constexpr (kAgain) {
    WaitForLaunchBefore();
    encoder.Again();
  } else {
    encoder.Once();
    // Values are begun while keys are encoded; who waits for them waits for those too.
    if constexpr (Part::kNumber == 1) WaitForLaunchBefore();
  }
}

template <typename Part, bool kAgain>
cudaError_t LaunchPart(const CodecPlan& plan, const EncodeArgs& args, cudaStream_t stream) {
  // What is before the first part in the stream may have made the rows.
  constexpr auto kBegin = Part::kNumber == 0 && !kAgain ? Begin::kInOrder : Begin::kEarly;
  const uint32_t pairs = NumPairs(plan.cell, args.num_cells);
  return WithRowType(args.type, [&](auto type) {
    constexpr RowType kType = decltype(type)::value;
    // The second time a warp looks through 32 pairs at a time.
    return LaunchPersistent(Encode<Part, kType, kAgain>, kBegin, kAgain ? (pairs + 31) / 32 : pairs,
                            Part::kBlocksOfProcessor, kSharedBytes<Part, kType>, stream, plan,
                            args);
  });
}

template <bool kAgain>
cudaError_t LaunchParts(const CodecPlan& plan, const EncodeArgs& args, cudaStream_t stream) {
  const cudaError_t keys = WithKeyKind(plan.cell, [&](auto kind) {
    return LaunchPart<KeyPart<decltype(kind)::value>, kAgain>(plan, args, stream);
  });
  if (keys != cudaSuccess) return keys;
  return WithValueKind(plan.cell, [&](auto kind) {
    return LaunchPart<ValuePart<decltype(kind)::value>, kAgain>(plan, args, stream);
  });
}

}  // namespace

cudaError_t LaunchEncode(const CodecPlan& plan, const EncodeArgs& args, cudaStream_t stream) {
  if (args.num_cells == 0) return cudaSuccess;
  const cudaError_t once = LaunchParts<false>(plan, args, stream);
  return once != cudaSuccess ? once : LaunchParts<true>(plan, args, stream);
}

}  // namespace sketchkv::cuda
