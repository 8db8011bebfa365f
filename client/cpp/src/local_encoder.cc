#include "client/cpp/src/local_encoder.h"

#include "absl/strings/str_cat.h"

namespace sketchkv::client {
namespace {

// Rows of head `head` in keys or values of one layer that begin at `data`.
RowsView HeadRows(const std::byte* data, size_t row_bytes, uint32_t head, uint32_t num_heads,
                  uint32_t num_tokens, sketchkv::RawOrder order) {
  if (order == sketchkv::RawOrder::kNhd) {
    return {data + head * row_bytes, num_heads * row_bytes};
  }
  return {data + size_t{head} * num_tokens * row_bytes, row_bytes};
}

}  // namespace

absl::StatusOr<std::vector<std::byte>> EncodeCells(const BlockCodec& codec, const PartRange& range,
                                                   uint32_t num_tokens, sketchkv::RawOrder order,
                                                   std::span<const std::byte> payload) {
  const size_t key_row = codec.layout().key_row_bytes();
  const size_t value_row = codec.layout().value_row_bytes();
  const size_t rows = size_t{range.head_count} * num_tokens;
  const uint32_t layer_end = range.layer_begin + range.layer_count;
  size_t total = 0;
  for (uint32_t layer = range.layer_begin; layer < layer_end; ++layer) {
    total += range.head_count * codec.cell_bytes(layer);
  }
  std::vector<std::byte> cells(total);
  size_t done = 0;
  const std::byte* keys = payload.data();
  for (uint32_t layer = range.layer_begin; layer < layer_end; ++layer) {
    const std::byte* values = keys + rows * key_row;
    for (uint32_t head = 0; head < range.head_count; ++head) {
      const CellCodec& cell = codec.cell(layer, range.head_begin + head);
      const auto view = [&](const std::byte* data, size_t row_bytes) {
        return HeadRows(data, row_bytes, head, range.head_count, num_tokens, order);
      };
      const absl::Status status =
          cell.Encode(view(keys, key_row), view(values, value_row), num_tokens,
                      std::span(cells).subspan(done, cell.cell_bytes()));
      if (!status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("layer ", layer, " head ", range.head_begin + head, ": ",
                                         status.message()));
      }
      done += cell.cell_bytes();
    }
    keys = values + rows * value_row;
  }
  return cells;
}

}  // namespace sketchkv::client
