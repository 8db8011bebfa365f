#include "service/engine/raw_answer.h"

#include <algorithm>
#include <memory>

#include "kernels/base/status_macros.h"
#include "kernels/base/xxh3.h"

namespace sketchkv {
namespace {

// How much of a decoded answer is made at a time, unless a layer is more.
constexpr uint64_t kStepBytes = uint64_t{2} << 20;

MutableRowsView Mutable(RowsView rows) {
  return {.data = const_cast<std::byte*>(rows.data), .stride_bytes = rows.stride_bytes};
}

}  // namespace

PartLayout RawAnswer::Layout() const {
  PartLayout layout;
  layout.range = range;
  layout.num_tokens = num_tokens;
  layout.raw_order = order;
  return layout;
}

absl::Status RawAnswer::DecodeCell(const RawPartFormat& format, const WriteHandle::Cell& cell,
                                   std::span<const std::byte> from, std::byte* payload) const {
  MutableRowsView values = Mutable(format.Values(payload, cell.layer, cell.head));
  if (format.value_row_bytes() == 0) values.data = nullptr;
  return model.codec->cell(cell.layer, cell.head)
      .Decode(from, num_tokens, dtype, Mutable(format.Keys(payload, cell.layer, cell.head)), dtype,
              values);
}

absl::StatusOr<uint64_t> DecodeInSteps(const RawAnswer& answer, const DecodeLayers& decode,
                                       PartSink* sink) {
  const RawPartFormat whole = answer.Format(answer.range);
  sink->Begin(answer.Layout(), whole, whole.total_bytes());
  const uint32_t end = answer.range.layer_begin + answer.range.layer_count;
  const auto step = static_cast<uint32_t>(std::max<uint64_t>(kStepBytes / whole.layer_bytes(), 1));
  RunningXxh3 checksum;
  Payload last;  // step, not in the checksum yet
  const auto add_last = [&] {
    for (const Payload::Fragment& fragment : last.fragments()) checksum.Add(fragment.bytes);
  };
  CellRange layers = answer.range;
  for (; layers.layer_begin < end; layers.layer_begin += step) {
    layers.layer_count = std::min(step, end - layers.layer_begin);
    const RawPartFormat format = answer.Format(layers);
    const std::shared_ptr<std::byte> out = NewBytes(format.total_bytes());
    SKETCHKV_RETURN_IF_ERROR(decode(layers, format, out.get(), add_last));
    last = Payload();
    last.Append({out.get(), format.total_bytes()}, out);
    sink->Append(last);
  }
  add_last();
  return checksum.Value();
}

}  // namespace sketchkv
