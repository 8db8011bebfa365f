#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

// A step: four tiles of sixteen tokens that a warp works on at a time, copied to shared memory a
// few steps ahead. Of lane l, g = l / 4 and c = l % 4; it works for query g and tile c.
namespace sketchkv::cuda {

constexpr uint32_t kLanesOfTile = 8;  // that copy it
constexpr uint32_t kChunkBytes = 16;

// Where a step's parts lie in shared memory. Copies are swizzled, so that the lanes that read
// together read from different banks: Planes and Lines say where 16 bytes went.
template <KeyKind kKeys, ValueKind kValues, bool kWithValues>
struct StepShape {
  static constexpr uint32_t kWords = kKeys == KeyKind::kThreeBits ? 12 : 8;
  static constexpr uint32_t kScaleRows = kValues == ValueKind::kRotated ? 2 : 1;
  static constexpr bool kHasRanges = kWithValues && kValues == ValueKind::kRanges;

  // Without values, a cell's lines of 128 bytes are not wanted whole: its first and last ones hold
  // padding, values and the cell before.
  static constexpr uint32_t kFetched = kWithValues ? 128 : 64;

  static constexpr uint32_t kPlaneBytes = kWords * 64;  // of a tile
  static constexpr uint32_t kScaleBytes = kScaleRows * 32;
  static constexpr uint32_t kLineBytes = kWithValues ? kDim / 16 * 64 : 0;
  static constexpr uint32_t kRangeBytes = kHasRanges ? kDim / 32 * 64 : 0;

  static constexpr uint32_t kScales = kStepTiles * kPlaneBytes;
  static constexpr uint32_t kLines = kScales + kStepTiles * kScaleBytes;
  static constexpr uint32_t kRanges = kLines + kStepTiles * kLineBytes;
  static constexpr uint32_t kBytes = kRanges + kStepTiles * kRangeBytes;

  // 16 bytes number `chunk` of a tile's planes: word chunk / 4, tokens 4 (chunk % 4) and on.
  __device__ static uint32_t Planes(uint32_t tile, uint32_t chunk) {
    return tile * kPlaneBytes + (chunk ^ (chunk >> 3 & 1) << 1) * kChunkBytes;
  }
  // Of its lines: line chunk / 4, channels 4 (chunk % 4) and on. Ranges likewise.
  __device__ static uint32_t Lines(uint32_t tile, uint32_t chunk) {
    return kLines + tile * kLineBytes + (chunk ^ tile << 1) * kChunkBytes;
  }
  __device__ static uint32_t Ranges(uint32_t tile, uint32_t chunk) {
    return kRanges + tile * kRangeBytes + (chunk ^ tile << 1) * kChunkBytes;
  }
};

// Steps [begin, end) of one (sequence, kv head), which a thread block does without a break.
struct Segment {
  uint32_t sequence;
  uint32_t head;
  uint32_t pair;  // sequence * num_kv_heads + head
  uint32_t begin, end;
  uint32_t token_begin, token_end;
  // Partials of the pair are first_partial and those behind it; this segment's is `partial`.
  uint32_t partial, first_partial, num_partials;
  const uint8_t* const* slots;  // the sequence's
  size_t cell_offset;
};

// The segments of this thread block, one after the other.
class Segments {
 public:
  __device__ explicit Segments(const ChainArgs& args) : args_(args) {
    at_ = blockIdx.x * args.share;
    end_ = min(at_ + args.share, args.sequences[args.num_sequences].first_step * args.num_kv_heads);
    uint32_t high = args.num_sequences;  // the last sequence that begins at at_ or before
    while (high - sequence_ > 1) {
      const uint32_t middle = (sequence_ + high) / 2;
      if (args.sequences[middle].first_step * args.num_kv_heads <= at_) {
        sequence_ = middle;
      } else {
        high = middle;
      }
    }
  }

  __device__ bool Next(Segment* segment) {
    if (at_ >= end_) return false;
    Sequence s = args_.sequences[sequence_];
    uint32_t next_step = args_.sequences[sequence_ + 1].first_step;
    if (at_ >= next_step * args_.num_kv_heads) {
      s = args_.sequences[++sequence_];
      next_step = args_.sequences[sequence_ + 1].first_step;
    }
    const uint32_t steps = next_step - s.first_step;
    const uint32_t first_of_sequence = s.first_step * args_.num_kv_heads;
    segment->sequence = sequence_;
    segment->head = (at_ - first_of_sequence) / steps;
    segment->pair = sequence_ * args_.num_kv_heads + segment->head;
    const uint32_t first = first_of_sequence + segment->head * steps;  // of the pair
    const uint32_t until = min(end_, first + steps);
    segment->begin = s.token_begin / 64 + at_ - first;
    segment->end = min(s.token_begin / 64 + until - first, (s.token_end + 63) / 64);
    segment->token_begin = s.token_begin;
    segment->token_end = s.token_end;
    // Thread block and pair never go back from one segment to the next, and one of them goes on.
    segment->partial = blockIdx.x + segment->pair;
    segment->first_partial = first / args_.share + segment->pair;
    segment->num_partials =
        (first + steps - 1) / args_.share + segment->pair - segment->first_partial + 1;
    segment->slots = args_.slots + s.first_block;
    segment->cell_offset = args_.cell_offset + segment->head * args_.cell_stride;
    at_ = until;
    return true;
  }

 private:
  const ChainArgs& args_;
  uint32_t at_, end_;
  uint32_t sequence_ = 0;
};

// Copies steps of one warp.
template <typename Shape>
class StepCopier {
 public:
  __device__ StepCopier(const CellPlan& plan, const Segment& segment, uint32_t lane)
      : plan_(plan),
        segment_(segment),
        tile_(lane / kLanesOfTile),
        j_(lane % kLanesOfTile),
        end_tile_((segment.token_end + 15) / 16) {}

  // The slot of this lane's tile of step `step`: a load that nothing waits for before Copy does.
  __device__ const uint8_t* LookUp(uint32_t step) const {
    const uint32_t tile = step * kStepTiles + tile_;
    return tile < end_tile_ ? segment_.slots[tile >> plan_.block_tiles_log2] : nullptr;
  }

  // Zeros where there is no slot.
  __device__ void Copy(const uint8_t* slot, uint32_t step, uint32_t shared) const {
    const bool present = slot != nullptr;
    const uint32_t tile = (step * kStepTiles + tile_) & ((1u << plan_.block_tiles_log2) - 1);
    const uint8_t* cell = slot + segment_.cell_offset + j_ * kChunkBytes;
    const uint8_t* planes = cell + plan_.planes + tile * Shape::kPlaneBytes;
#pragma unroll
    for (uint32_t i = 0; i < Shape::kPlaneBytes / 128; ++i) {
      CopyAsync<Shape::kFetched>(shared + Shape::Planes(tile_, i * kLanesOfTile + j_),
                                 planes + i * 128, present);
    }
    if (j_ < Shape::kScaleBytes / kChunkBytes) {
      CopyAsync<Shape::kFetched>(
          shared + Shape::kScales + tile_ * Shape::kScaleBytes + j_ * kChunkBytes,
          cell + plan_.scales + tile * Shape::kScaleBytes, present);
    }
    if constexpr (Shape::kLineBytes > 0) {
      const uint8_t* lines = cell + plan_.values + tile * Shape::kLineBytes;
#pragma unroll
      for (uint32_t i = 0; i < Shape::kLineBytes / 128; ++i) {
        CopyAsync(shared + Shape::Lines(tile_, i * kLanesOfTile + j_), lines + i * 128, present);
      }
    }
    if constexpr (Shape::kHasRanges) {
      const uint8_t* ranges = cell + plan_.ranges + tile * Shape::kRangeBytes;
#pragma unroll
      for (uint32_t i = 0; i < Shape::kRangeBytes / 128; ++i) {
        CopyAsync(shared + Shape::Ranges(tile_, i * kLanesOfTile + j_), ranges + i * 128, present);
      }
    }
  }

 private:
  const CellPlan& plan_;
  const Segment& segment_;
  const uint32_t tile_, j_, end_tile_;
};

// Sixteen scales of 16 bits at `shared`, as floats.
__device__ inline void LoadScales(uint32_t shared, float (&scales)[16]) {
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint4 x = LoadShared(shared + half * kChunkBytes);
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      scales[8 * half + 2 * i] = __uint_as_float((pairs[i] & 0xFFFF) << 15);
      scales[8 * half + 2 * i + 1] = __uint_as_float(pairs[i] >> 16 << 15);
    }
  }
}

// The steps of a segment that one warp does, a ring of kStages of them in shared memory: one at
// work, the others on the way.
template <typename Shape, uint32_t kStages>
class StepRing {
 public:
  static constexpr uint32_t kBytes = kStages * Shape::kBytes;

  __device__ StepRing(const CellPlan& plan, const Segment& segment, uint32_t shared, uint32_t warp,
                      uint32_t num_warps, uint32_t lane)
      : copier_(plan, segment, lane),
        shared_(shared + warp * kBytes),
        next_(segment.begin + warp),
        stride_(num_warps),
        end_(segment.end) {
    // All loads of slots first: they take as long as one.
#pragma unroll
    for (uint32_t i = 0; i < kStages; ++i) slots_[i] = LookUp(next_ + i * stride_);
  }
  // The first step is on its way after Begin, all but the last of the ring after Fill.
  __device__ void Begin() { Copy(0); }
  __device__ void Fill() {
#pragma unroll
    for (uint32_t i = 1; i + 1 < kStages; ++i) Copy(i);
  }

  // Shared memory of the warp's next step, whole; the warp is done with the one before.
  __device__ uint32_t Next() {
    WaitForCopies<kStages - 2>();
    __syncwarp();
    Copy(stage_ == 0 ? kStages - 1 : stage_ - 1);
    const uint32_t at = shared_ + stage_ * Shape::kBytes;
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    return at;
  }

 private:
  __device__ const uint8_t* LookUp(uint32_t step) const {
    return step < end_ ? copier_.LookUp(step) : nullptr;
  }

  __device__ void Copy(uint32_t stage) {
    if (next_ < end_) copier_.Copy(slots_[0], next_, shared_ + stage * Shape::kBytes);
    CommitCopies();
#pragma unroll
    for (uint32_t i = 0; i + 1 < kStages; ++i) slots_[i] = slots_[i + 1];
    slots_[kStages - 1] = LookUp(next_ + kStages * stride_);
    next_ += stride_;
  }

  StepCopier<Shape> copier_;
  const uint32_t shared_;
  uint32_t next_;
  const uint32_t stride_, end_;
  const uint8_t* slots_[kStages];  // of steps next_, next_ + stride_, ...
  uint32_t stage_ = 0;
};

}  // namespace sketchkv::cuda
