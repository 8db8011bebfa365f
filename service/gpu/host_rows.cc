#include "service/gpu/host_rows.h"

#include <algorithm>
#include <array>
#include <optional>

#include "kernels/base/status_macros.h"
#include "service/gpu/codec_batch.h"

namespace sketchkv::gpu {
namespace {

// With less the launches cost more than a processor's core takes to encode it.
constexpr uint64_t kLeastBytes = uint64_t{1} << 20;
constexpr size_t kHalf = Lane::kStagingBytes / 2;
// Of a half; the rest is for what the kernels are told of the cells.
constexpr size_t kMaxRowsBytes = size_t{6} << 20;
constexpr size_t kMaxCells = 16384;
// The first copy has nothing to hide behind, and each piece costs some launches.
constexpr size_t kRowsBytes = size_t{4} << 20;

RawPartFormat FormatOf(const GpuPart& part) {
  const PartLayout& layout = part.layout;
  return {part.model->layout(), layout.range, layout.num_tokens, layout.raw_order};
}

// Some layers in one half.
struct Half {
  GpuPart part;
  std::optional<CodecPiece> piece;
  std::optional<CodecBatch> batch;
};

// Cells [begin, end) of a part, all that it has of these layers.
GpuPart SomeLayers(const GpuPart& part, size_t begin, size_t end) {
  GpuPart some = part;
  some.cells = part.cells.subspan(begin, end - begin);
  some.seeds = part.seeds.subspan(begin, end - begin);
  some.checksums = part.checksums.subspan(begin, end - begin);
  some.layout.range.layer_begin = part.cells[begin].layer;
  some.layout.range.layer_count = part.cells[end - 1].layer - part.cells[begin].layer + 1;
  return some;
}

// The end of the cells from `begin` on whose layers go together.
size_t EndOfLayers(const GpuPart& part, size_t begin, size_t most_layers) {
  const uint64_t end_layer = part.cells[begin].layer + most_layers;
  const auto end = std::find_if(part.cells.begin() + begin, part.cells.end(),
                                [&](const auto& cell) { return cell.layer >= end_layer; });
  return end - part.cells.begin();
}

}  // namespace

bool TakesHostRows(const GpuPart& part, uint64_t payload_bytes) {
  return part.slot != nullptr && payload_bytes >= kLeastBytes &&
         FormatOf(part).layer_bytes() <= kMaxRowsBytes && part.layout.range.head_count <= kMaxCells;
}

absl::Status EncodeHostRows(Lane* lane, const GpuModel& model, const GpuPart& part,
                            const Payload& payload,
                            const std::function<void(uint64_t end)>& reading,
                            absl::Status* refused) {
  const KvLayout& layout = part.model->layout();
  const uint64_t layer_bytes = FormatOf(part).layer_bytes();
  const size_t most_layers = std::max<size_t>(
      std::min(kRowsBytes / layer_bytes, kMaxCells / part.layout.range.head_count), 1);
  std::array<Half, 2> halves;
  const auto finish = [&](size_t half) -> absl::Status {
    if (!halves[half].batch) return absl::OkStatus();
    SKETCHKV_RETURN_IF_ERROR(lane->WaitForHalf(half));
    halves[half].batch->Finish();
    if (refused->ok()) *refused = halves[half].piece->refused();
    return absl::OkStatus();
  };
  size_t half = 0;
  for (size_t begin = 0; begin < part.cells.size(); half ^= 1) {
    SKETCHKV_RETURN_IF_ERROR(finish(half));
    const size_t end = EndOfLayers(part, begin, most_layers);
    Half& some = halves[half];
    some.part = SomeLayers(part, begin, end);
    begin = end;
    const CellRange& range = some.part.layout.range;
    const uint64_t from = (range.layer_begin - part.layout.range.layer_begin) * layer_bytes;
    const uint64_t bytes = range.layer_count * layer_bytes;
    const size_t rows = half * kHalf;
    reading(from + bytes);
    payload.CopyTo(from, {lane->host(rows), bytes});
    SKETCHKV_RETURN_IF_ERROR(lane->Up(rows, rows + bytes));
    some.piece.emplace(model, some.part, CodecWay::kEncode,
                       CodecRows{layout.key_dtype, layout.value_dtype, lane->device(rows)}, 0,
                       SIZE_MAX);
    some.batch.emplace(lane, rows + kMaxRowsBytes, kHalf - kMaxRowsBytes);
    (void)some.batch->Add(&*some.piece);  // it is empty
    SKETCHKV_RETURN_IF_ERROR(some.batch->Start());
    SKETCHKV_RETURN_IF_ERROR(lane->MarkHalf(half));
  }
  // The older one first.
  SKETCHKV_RETURN_IF_ERROR(finish(half));
  return finish(half ^ 1);
}

}  // namespace sketchkv::gpu
