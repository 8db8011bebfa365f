#include "service/gpu/codec_job.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/cell_source.h"

namespace sketchkv::gpu {
namespace {

constexpr size_t kCellAlignment = 64;

// What the kernels are told of some cells, and what they say, in a lane's staging area, and behind
// it those cells whose slot is on the host.
class CellTables {
 public:
  static constexpr size_t kCellBytes = GpuLayer::kCellBytes + sizeof(cuda::StoredCell) +
                                       sizeof(cuda::EncodeArgs::Checks) + sizeof(uint32_t);
  static constexpr size_t kMaxBytes = Lane::kStagingBytes / 2;

  CellTables(Lane* lane, size_t num_cells)
      : lane_(lane),
        stored_(num_cells * GpuLayer::kCellBytes),
        checks_(stored_ + num_cells * sizeof(cuda::StoredCell)),
        checksums_(checks_ + num_cells * sizeof(cuda::EncodeArgs::Checks)),
        end_(checksums_ + num_cells * sizeof(uint32_t)),
        cells_((end_ + kCellAlignment - 1) / kCellAlignment * kCellAlignment) {}

  // On the host until Up. The cell at `index` of what kernels read of cells is at CellAt(index).
  [[nodiscard]] static size_t CellAt(size_t index) { return index * GpuLayer::kCellBytes; }
  [[nodiscard]] cuda::StoredCell* stored() const { return Host<cuda::StoredCell>(stored_); }
  absl::Status Up() {
    std::memset(lane_->host(checks_), 0, checksums_ - checks_);
    return lane_->Up(0, checksums_);
  }
  // On the card.
  [[nodiscard]] const cuda::StoredCell* device_stored() const {
    return Device<cuda::StoredCell>(stored_);
  }
  [[nodiscard]] cuda::EncodeArgs::Checks* device_checks() const {
    return Device<cuda::EncodeArgs::Checks>(checks_);
  }
  [[nodiscard]] uint32_t* device_checksums() const { return Device<uint32_t>(checksums_); }
  // On the host after Down.
  absl::Status Down() {
    SKETCHKV_RETURN_IF_ERROR(lane_->Down(checks_, end_));
    return lane_->Wait();
  }
  [[nodiscard]] const cuda::EncodeArgs::Checks* checks() const {
    return Host<cuda::EncodeArgs::Checks>(checks_);
  }
  [[nodiscard]] const uint32_t* checksums() const { return Host<uint32_t>(checksums_); }

  // Cells one behind the other; `offset` is from the first of them.
  [[nodiscard]] std::byte* host_cell(size_t offset) const { return lane_->host(cells_ + offset); }
  [[nodiscard]] uint8_t* device_cell(size_t offset) const {
    return Device<uint8_t>(cells_ + offset);
  }
  absl::Status CellsUp(size_t bytes) { return lane_->Up(cells_, cells_ + bytes); }
  absl::Status CellsDown(size_t bytes) { return lane_->Down(cells_, cells_ + bytes); }

 private:
  template <typename T>
  [[nodiscard]] T* Host(size_t offset) const {
    return reinterpret_cast<T*>(lane_->host(offset));
  }
  template <typename T>
  [[nodiscard]] T* Device(size_t offset) const {
    return reinterpret_cast<T*>(lane_->device(offset));
  }

  Lane* const lane_;
  // Offsets; of the tables, what needs most alignment comes first.
  const size_t stored_, checks_, checksums_, end_, cells_;
};

// The end of the cells from `begin` on that are done together.
size_t BatchEnd(const GpuPart& part, size_t begin) {
  size_t bytes = 0, end = begin;
  for (; end < part.cells.size(); ++end) {
    bytes += CellTables::kCellBytes;
    if (part.slot == nullptr) bytes += part.model->codec->cell_bytes(part.cells[end].layer);
    if (bytes > CellTables::kMaxBytes && end > begin) break;
  }
  return end;
}

// Calls visit(cell in the slot on the host, offset in the staging area) for cells [begin, end), and
// returns their bytes: 0 where the slot is on the card.
template <typename Visit>
size_t EachHostCell(const GpuPart& part, size_t begin, size_t end, const Visit& visit) {
  if (part.slot != nullptr) return 0;
  const BlockCodec& codec = *part.model->codec;
  size_t offset = 0;
  for (size_t i = begin; i < end; ++i) {
    const auto [layer, head] = part.cells[i];
    const size_t bytes = codec.cell_bytes(layer);
    visit(std::span(part.host_slot + codec.cell_offset(layer, head), bytes), offset);
    offset += bytes;
  }
  return offset;
}

// Cells [begin, end) of a part, and the rows at `payload` they belong to.
struct Rows {
  const GpuModel& model;
  const GpuPart& part;
  RawPartFormat format;
  DType key_type, value_type;
  std::byte* payload;
};

// Fills the tables of cells [begin, end) and gives the launches that make or read them, one for
// each run of cells with the same kernels.
absl::Status FillTables(Lane* lane, const Rows& rows, size_t begin, size_t end, CellTables* tables,
                        std::vector<std::pair<const GpuLayer*, GpuLayer::Cells>>* runs) {
  constexpr uintptr_t kAlignment = 16;
  const GpuPart& part = rows.part;
  const BlockCodec& codec = *part.model->codec;
  auto* const payload = reinterpret_cast<uint8_t*>(rows.payload);
  const auto [first_layer, first_head] = part.cells[begin];
  size_t staged = 0;
  for (size_t i = begin; i < end;) {
    const GpuLayer& coder = rows.model.coder(part.cells[i].layer);
    GpuLayer::Cells run = {
        .offset = CellTables::CellAt(i - begin),
        .key_type = rows.key_type,
        .value_type = rows.value_type,
        .key_stride = rows.format.KeysAt(first_layer, first_head).stride_bytes,
        .value_stride = rows.format.ValuesAt(first_layer, first_head).stride_bytes,
        .aligned = true};
    std::vector<cuda::GeneralCell> cells;
    for (; i < end && &rows.model.coder(part.cells[i].layer) == &coder; ++i) {
      const auto [layer, head] = part.cells[i];
      uint8_t* const cell = part.slot != nullptr ? reinterpret_cast<uint8_t*>(part.slot) +
                                                       codec.cell_offset(layer, head)
                                                 : tables->device_cell(staged);
      staged += codec.cell_bytes(layer);
      uint8_t* const keys = payload + rows.format.KeysAt(layer, head).offset;
      uint8_t* const values = payload + rows.format.ValuesAt(layer, head).offset;
      run.aligned = run.aligned && reinterpret_cast<uintptr_t>(keys) % kAlignment == 0 &&
                    reinterpret_cast<uintptr_t>(values) % kAlignment == 0;
      cells.push_back({{keys, values, cell, part.layout.num_tokens}, head});
      tables->stored()[i - begin] = {cell, part.seeds[i],
                                     static_cast<uint32_t>(codec.cell_bytes(layer))};
    }
    run.num_cells = static_cast<uint32_t>(cells.size());
    coder.FillCells(lane, run, cells);
    runs->push_back({&coder, run});
  }
  return tables->Up();
}

absl::Status LaunchChecksums(const CellTables& tables, size_t count, cudaStream_t stream) {
  return CudaStatus(cuda::LaunchChecksum({.cells = tables.device_stored(),
                                          .num_cells = static_cast<uint32_t>(count),
                                          .checksums = tables.device_checksums()},
                                         stream),
                    "checksums");
}

absl::Status CheckFinite(const KvLayout& layout, const WriteHandle::Cell& cell,
                         const cuda::EncodeArgs::Checks& checks) {
  for (const uint32_t half : {0, 1}) {
    if (checks.not_finite[half] == 0) continue;
    const uint32_t at = ~checks.not_finite[half];
    const uint32_t dim = half == 0 ? layout.head_dim : layout.value_dim;
    return AtCell(cell, absl::InvalidArgumentError(absl::StrCat(half == 0 ? "keys" : "values",
                                                                ": token ", at / dim, " channel ",
                                                                at % dim, " is not finite")));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status EncodeOn(Lane* lane, const GpuModel& model, const GpuPart& part,
                      const std::byte* payload) {
  const KvLayout& layout = part.model->layout();
  const Rows rows = {model,
                     part,
                     {layout, part.layout.range, part.layout.num_tokens, part.layout.raw_order},
                     layout.key_dtype,
                     layout.value_dtype,
                     const_cast<std::byte*>(payload)};  // which is only read
  for (size_t begin = 0; begin < part.cells.size();) {
    const size_t end = BatchEnd(part, begin);
    CellTables tables(lane, end - begin);
    std::vector<std::pair<const GpuLayer*, GpuLayer::Cells>> runs;
    SKETCHKV_RETURN_IF_ERROR(FillTables(lane, rows, begin, end, &tables, &runs));
    cuda::EncodeArgs::Checks* checks = tables.device_checks();
    for (const auto& [kernels, cells] : runs) {
      SKETCHKV_RETURN_IF_ERROR(kernels->Encode(lane, cells, checks));
      checks += cells.num_cells;
    }
    SKETCHKV_RETURN_IF_ERROR(LaunchChecksums(tables, end - begin, lane->stream()));
    SKETCHKV_RETURN_IF_ERROR(tables.CellsDown(EachHostCell(part, begin, end, [](auto, size_t) {})));
    SKETCHKV_RETURN_IF_ERROR(tables.Down());
    EachHostCell(part, begin, end, [&](std::span<std::byte> cell, size_t offset) {
      std::memcpy(cell.data(), tables.host_cell(offset), cell.size());
    });
    for (size_t i = begin; i < end; ++i) {
      SKETCHKV_RETURN_IF_ERROR(CheckFinite(layout, part.cells[i], tables.checks()[i - begin]));
      part.checksums[i] = tables.checksums()[i - begin];
    }
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status DecodeOn(Lane* lane, const GpuModel& model, const GpuPart& part, DType dtype,
                      std::byte* payload) {
  const Rows rows = {model,
                     part,
                     {part.model->layout(), part.layout.range, part.layout.num_tokens,
                      part.layout.raw_order, dtype, dtype},
                     dtype,
                     dtype,
                     payload};
  for (size_t begin = 0; begin < part.cells.size();) {
    const size_t end = BatchEnd(part, begin);
    CellTables tables(lane, end - begin);
    std::vector<std::pair<const GpuLayer*, GpuLayer::Cells>> runs;
    SKETCHKV_RETURN_IF_ERROR(FillTables(lane, rows, begin, end, &tables, &runs));
    const size_t host_bytes =
        EachHostCell(part, begin, end, [&](std::span<const std::byte> cell, size_t offset) {
          std::memcpy(tables.host_cell(offset), cell.data(), cell.size());
        });
    SKETCHKV_RETURN_IF_ERROR(tables.CellsUp(host_bytes));
    SKETCHKV_RETURN_IF_ERROR(LaunchChecksums(tables, end - begin, lane->stream()));
    for (const auto& [kernels, cells] : runs) {
      SKETCHKV_RETURN_IF_ERROR(kernels->Decode(lane, cells));
    }
    SKETCHKV_RETURN_IF_ERROR(tables.Down());
    std::copy_n(tables.checksums(), end - begin, part.checksums.begin() + begin);
    begin = end;
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::gpu
