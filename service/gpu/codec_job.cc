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

// What the kernels are told of some cells, and what they say, in a lane's staging area.
class CellTables {
 public:
  static constexpr size_t kCellBytes = GpuLayer::kCellBytes + sizeof(cuda::StoredCell) +
                                       sizeof(cuda::EncodeArgs::Checks) + sizeof(uint32_t);
  static constexpr size_t kMaxCells = Lane::kStagingBytes / (2 * kCellBytes);

  CellTables(Lane* lane, size_t num_cells)
      : lane_(lane),
        stored_(num_cells * GpuLayer::kCellBytes),
        checks_(stored_ + num_cells * sizeof(cuda::StoredCell)),
        checksums_(checks_ + num_cells * sizeof(cuda::EncodeArgs::Checks)),
        end_(checksums_ + num_cells * sizeof(uint32_t)) {}

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
  const size_t stored_, checks_, checksums_,
      end_;  // offsets; what needs most alignment comes first
};

// Cells [begin, end) of a part, and the rows at `payload` they belong to.
struct Rows {
  const GpuModel& model;
  const GpuPart& part;
  RawPartFormat format;
  DType key_type, value_type;
  std::byte* payload;
};

// Fills the tables of cells [begin, end), and calls run(layer, cells, first) for each run of them
// that lies in one layer.
absl::Status FillTables(Lane* lane, const Rows& rows, size_t begin, size_t end, CellTables* tables,
                        std::vector<std::pair<const GpuLayer*, GpuLayer::Cells>>* runs) {
  constexpr uintptr_t kAlignment = 16;
  const GpuPart& part = rows.part;
  const BlockCodec& codec = *part.model->codec;
  auto* const payload = reinterpret_cast<uint8_t*>(rows.payload);
  const auto [first_layer, first_head] = part.cells[begin];
  for (size_t i = begin; i < end;) {
    const uint32_t layer = part.cells[i].layer;
    GpuLayer::Cells run = {
        .offset = CellTables::CellAt(i - begin),
        .key_type = rows.key_type,
        .value_type = rows.value_type,
        .key_stride = rows.format.KeysAt(first_layer, first_head).stride_bytes,
        .value_stride = rows.format.ValuesAt(first_layer, first_head).stride_bytes,
        .aligned = true};
    std::vector<cuda::GeneralCell> cells;
    for (; i < end && part.cells[i].layer == layer; ++i) {
      const uint32_t head = part.cells[i].head;
      uint8_t* const cell = reinterpret_cast<uint8_t*>(part.slot) + codec.cell_offset(layer, head);
      uint8_t* const keys = payload + rows.format.KeysAt(layer, head).offset;
      uint8_t* const values = payload + rows.format.ValuesAt(layer, head).offset;
      run.aligned = run.aligned && reinterpret_cast<uintptr_t>(keys) % kAlignment == 0 &&
                    reinterpret_cast<uintptr_t>(values) % kAlignment == 0;
      cells.push_back({{keys, values, cell, part.layout.num_tokens}, head});
      tables->stored()[i - begin] = {cell, part.seeds[i],
                                     static_cast<uint32_t>(codec.cell_bytes(layer))};
    }
    run.num_cells = static_cast<uint32_t>(cells.size());
    rows.model.layer(layer).FillCells(lane, run, cells);
    runs->push_back({&rows.model.layer(layer), run});
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
  for (size_t begin = 0; begin < part.cells.size(); begin += CellTables::kMaxCells) {
    const size_t end = std::min(part.cells.size(), begin + CellTables::kMaxCells);
    CellTables tables(lane, end - begin);
    std::vector<std::pair<const GpuLayer*, GpuLayer::Cells>> runs;
    SKETCHKV_RETURN_IF_ERROR(FillTables(lane, rows, begin, end, &tables, &runs));
    cuda::EncodeArgs::Checks* checks = tables.device_checks();
    for (const auto& [kernels, cells] : runs) {
      SKETCHKV_RETURN_IF_ERROR(kernels->Encode(lane, cells, checks));
      checks += cells.num_cells;
    }
    SKETCHKV_RETURN_IF_ERROR(LaunchChecksums(tables, end - begin, lane->stream()));
    SKETCHKV_RETURN_IF_ERROR(tables.Down());
    for (size_t i = begin; i < end; ++i) {
      SKETCHKV_RETURN_IF_ERROR(CheckFinite(layout, part.cells[i], tables.checks()[i - begin]));
      part.checksums[i] = tables.checksums()[i - begin];
    }
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
  for (size_t begin = 0; begin < part.cells.size(); begin += CellTables::kMaxCells) {
    const size_t end = std::min(part.cells.size(), begin + CellTables::kMaxCells);
    CellTables tables(lane, end - begin);
    std::vector<std::pair<const GpuLayer*, GpuLayer::Cells>> runs;
    SKETCHKV_RETURN_IF_ERROR(FillTables(lane, rows, begin, end, &tables, &runs));
    SKETCHKV_RETURN_IF_ERROR(LaunchChecksums(tables, end - begin, lane->stream()));
    for (const auto& [kernels, cells] : runs) {
      SKETCHKV_RETURN_IF_ERROR(kernels->Decode(lane, cells));
    }
    SKETCHKV_RETURN_IF_ERROR(tables.Down());
    std::copy_n(tables.checksums(), end - begin, part.checksums.begin() + begin);
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::gpu
