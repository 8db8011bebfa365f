#include "service/gpu/codec_piece.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "service/engine/cell_source.h"

namespace sketchkv::gpu {
namespace {

constexpr uintptr_t kAlignment = 16;
// Of a lane's staging area, for each cell (CodecBatch).
constexpr size_t kCellBytes = GpuLayer::kCellBytes + sizeof(cuda::StoredCell) +
                              sizeof(cuda::EncodeArgs::Checks) + sizeof(uint32_t);

bool IsAligned(const uint8_t* rows) { return reinterpret_cast<uintptr_t>(rows) % kAlignment == 0; }

// Calls visit(cell in the slot on the host, offset from the first of them).
template <typename Visit>
void EachHostCell(const GpuPart& part, size_t begin, size_t end, const Visit& visit) {
  const BlockCodec& codec = *part.model->codec;
  size_t offset = 0;
  for (size_t i = begin; i < end; ++i) {
    const auto [layer, head] = part.cells[i];
    const size_t bytes = codec.cell_bytes(layer);
    visit(std::span(part.host_slot + codec.cell_offset(layer, head), bytes), offset);
    offset += bytes;
  }
}

}  // namespace

CodecPiece::CodecPiece(const GpuModel& model, const GpuPart& part, CodecWay way,
                       const CodecRows& rows, size_t begin, size_t bytes)
    : part_(part), way_(way), begin_(begin) {
  const BlockCodec& codec = *part.model->codec;
  const PartLayout& layout = part.layout;
  const RawPartFormat format(part.model->layout(), layout.range, layout.num_tokens,
                             layout.raw_order, rows.key_type, rows.value_type);
  const bool on_host = part.slot == nullptr;
  auto* const slot = reinterpret_cast<uint8_t*>(part.slot);
  auto* const payload = reinterpret_cast<uint8_t*>(rows.payload);
  cells_.reserve(part.cells.size() - begin);
  for (size_t i = begin; i < part.cells.size(); ++i) {
    const auto [layer, head] = part.cells[i];
    const size_t host_bytes = on_host ? codec.cell_bytes(layer) : 0;
    if (i > begin && StagingBytes() + kCellBytes + host_bytes > bytes) break;
    host_bytes_ += host_bytes;
    const GpuLayer& kernels = model.coder(layer);
    const RawPartFormat::RowsAt keys = format.KeysAt(layer, head);
    const RawPartFormat::RowsAt values = format.ValuesAt(layer, head);
    if (runs_.empty() || runs_.back().kernels != &kernels) {
      runs_.push_back({.kernels = &kernels,
                       .cells = {.key_type = rows.key_type,
                                 .value_type = rows.value_type,
                                 .key_stride = keys.stride_bytes,
                                 .value_stride = values.stride_bytes,
                                 .aligned = true},
                       .begin = cells_.size()});
    }
    cells_.push_back({{.keys = payload + keys.offset,
                       .values = payload + values.offset,
                       .cell = on_host ? nullptr : slot + codec.cell_offset(layer, head),
                       .num_tokens = layout.num_tokens},
                      head});
    GpuLayer::Cells& run = runs_.back().cells;
    ++run.num_cells;
    run.aligned =
        run.aligned && IsAligned(payload + keys.offset) && IsAligned(payload + values.offset);
  }
}

size_t CodecPiece::StagingBytes() const { return cells_.size() * kCellBytes + host_bytes_; }

void CodecPiece::PlaceHostCells(uint8_t* on_card) {
  if (host_bytes_ == 0) return;
  auto cell = cells_.begin();
  EachHostCell(part_, begin(), end(),
               [&](auto, size_t offset) { (cell++)->rows.cell = on_card + offset; });
}

void CodecPiece::CopyHostCellsTo(std::byte* staged) const {
  if (host_bytes_ == 0) return;
  EachHostCell(part_, begin(), end(), [&](std::span<const std::byte> cell, size_t offset) {
    std::memcpy(staged + offset, cell.data(), cell.size());
  });
}

void CodecPiece::CopyHostCellsFrom(const std::byte* staged) const {
  if (host_bytes_ == 0) return;
  EachHostCell(part_, begin(), end(), [&](std::span<std::byte> cell, size_t offset) {
    std::memcpy(cell.data(), staged + offset, cell.size());
  });
}

cuda::StoredCell CodecPiece::Stored(size_t i) const {
  const uint32_t layer = part_.cells[begin_ + i].layer;
  return {cells_[i].rows.cell, part_.seeds[begin_ + i],
          static_cast<uint32_t>(part_.model->codec->cell_bytes(layer))};
}

void CodecPiece::Take(size_t i, const cuda::EncodeArgs::Checks& checks, uint32_t checksum) {
  part_.checksums[begin_ + i] = checksum;
  if (!refused_.ok() && refused_cell_ < i) return;
  const KvLayout& layout = part_.model->layout();
  for (const uint32_t half : {0, 1}) {
    if (checks.not_finite[half] == 0) continue;
    const uint32_t at = ~checks.not_finite[half];
    const uint32_t dim = half == 0 ? layout.head_dim : layout.value_dim;
    refused_ = AtCell(
        part_.cells[begin_ + i],
        absl::InvalidArgumentError(absl::StrCat(half == 0 ? "keys" : "values", ": token ", at / dim,
                                                " channel ", at % dim, " is not finite")));
    refused_cell_ = i;
    return;
  }
}

}  // namespace sketchkv::gpu
