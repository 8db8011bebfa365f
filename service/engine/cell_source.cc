#include "service/engine/cell_source.h"

#include <memory>

#include "absl/strings/str_cat.h"

namespace sketchkv {

std::vector<WriteHandle::Cell> CellsOf(const CellRange& range) {
  std::vector<WriteHandle::Cell> cells;
  cells.reserve(size_t{range.layer_count} * range.head_count);
  for (uint32_t l = 0; l < range.layer_count; ++l) {
    for (uint32_t h = 0; h < range.head_count; ++h) {
      cells.push_back({.layer = range.layer_begin + l, .head = range.head_begin + h});
    }
  }
  return cells;
}

absl::Status AtCell(const WriteHandle::Cell& cell, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("layer ", cell.layer, ", head ", cell.head, ": ",
                                                  status.message()));
}

CellSource::CellSource(const Model& model, const PartLayout& part, const CellRange& range,
                       bool encoded, const Payload& payload)
    : codec_(*model.codec),
      num_tokens_(part.num_tokens),
      range_(range),
      raw_(model.layout(), range, part.num_tokens, part.raw_order),
      encoded_(encoded),
      payload_(payload) {}

absl::Status CellSource::Fill(const WriteHandle::Cell& cell, std::span<std::byte> out) const {
  const CellCodec& codec = codec_.cell(cell.layer, cell.head);
  if (encoded_) {
    payload_.CopyTo(EncodedCellOffset(codec_, range_, cell.layer, cell.head), out);
    return AtCell(cell, codec.Validate(out, num_tokens_));
  }
  // Where fragments cut the cell, and only there, its rows are gathered.
  std::unique_ptr<std::byte[]> scratch;
  const uint64_t key_bytes = num_tokens_ * raw_.key_row_bytes();
  const uint64_t value_bytes = num_tokens_ * raw_.value_row_bytes();
  if (payload_.fragments().size() > 1) {
    scratch = std::make_unique_for_overwrite<std::byte[]>(key_bytes + value_bytes);
  }
  const RawPartFormat::RowsAt keys = raw_.KeysAt(cell.layer, cell.head);
  const RowsView key_rows = payload_.Rows(keys.offset, keys.stride_bytes, raw_.key_row_bytes(),
                                          num_tokens_, scratch.get());
  RowsView value_rows;
  if (value_bytes > 0) {
    const RawPartFormat::RowsAt values = raw_.ValuesAt(cell.layer, cell.head);
    value_rows = payload_.Rows(values.offset, values.stride_bytes, raw_.value_row_bytes(),
                               num_tokens_, scratch.get() + key_bytes);
  }
  return AtCell(cell, codec.Encode(key_rows, value_rows, num_tokens_, out));
}

uint64_t CellSource::LayerEnd(uint32_t layer) const {
  if (!encoded_) return (layer - range_.layer_begin + 1) * raw_.layer_bytes();
  const uint64_t begin = EncodedCellOffset(codec_, range_, layer, range_.head_begin);
  return begin + codec_.cell_bytes(layer) * range_.head_count;
}

}  // namespace sketchkv
