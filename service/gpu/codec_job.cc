#include "service/gpu/codec_job.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/cell_source.h"

namespace sketchkv::gpu {
namespace {

constexpr size_t kRowAlignment = 16;

absl::StatusOr<cuda::RowType> RowTypeOf(DType keys, DType values) {
  const bool taken = keys == DType::kBf16 || keys == DType::kFp16 || keys == DType::kFp32;
  if (keys == values && taken) return static_cast<cuda::RowType>(keys);
  return absl::UnimplementedError(absl::StrCat("the card takes no rows of ", DTypeName(keys),
                                               " keys and ", DTypeName(values), " values"));
}

// What the kernels are told of some cells, and what they say, in a lane's staging area.
class CellTables {
 public:
  static constexpr size_t kCellBytes = sizeof(cuda::CellRows) + sizeof(cuda::StoredCell) +
                                       sizeof(cuda::EncodeArgs::Checks) + sizeof(uint32_t);
  static constexpr size_t kMaxCells = Lane::kStagingBytes / (2 * kCellBytes);

  CellTables(Lane* lane, size_t num_cells)
      : lane_(lane),
        stored_(num_cells * sizeof(cuda::CellRows)),
        checks_(stored_ + num_cells * sizeof(cuda::StoredCell)),
        checksums_(checks_ + num_cells * sizeof(cuda::EncodeArgs::Checks)),
        end_(checksums_ + num_cells * sizeof(uint32_t)) {}

  // On the host until Up.
  [[nodiscard]] cuda::CellRows* rows() const { return Host<cuda::CellRows>(0); }
  [[nodiscard]] cuda::StoredCell* stored() const { return Host<cuda::StoredCell>(stored_); }
  absl::Status Up() {
    std::memset(lane_->host(checks_), 0, checksums_ - checks_);
    return lane_->Up(0, checksums_);
  }
  // On the card.
  [[nodiscard]] const cuda::CellRows* device_rows() const { return Device<cuda::CellRows>(0); }
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

// Fills the tables of cells [begin, end) of a part.
absl::Status FillTables(const GpuPart& part, const RawPartFormat& raw, const std::byte* payload,
                        size_t begin, size_t end, const CellTables& tables) {
  const BlockCodec& codec = *part.model->codec;
  auto* const rows = reinterpret_cast<uint8_t*>(const_cast<std::byte*>(payload));
  for (size_t i = begin; i < end; ++i) {
    const auto [layer, head] = part.cells[i];
    uint8_t* const cell = reinterpret_cast<uint8_t*>(part.slot) + codec.cell_offset(layer, head);
    const RawPartFormat::RowsAt keys = raw.KeysAt(layer, head), values = raw.ValuesAt(layer, head);
    tables.rows()[i - begin] = {rows + keys.offset, rows + values.offset, cell,
                                part.layout.num_tokens};
    tables.stored()[i - begin] = {cell, part.seeds[i],
                                  static_cast<uint32_t>(codec.cell_bytes(layer))};
  }
  if (reinterpret_cast<uintptr_t>(payload) % kRowAlignment == 0) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("the card takes no rows that are not aligned to ", kRowAlignment, " bytes"));
}

// Calls run(plan, first, count) for cells [begin, end) of equal plans that stand together.
absl::Status EachPlan(
    const GpuModel& model, const GpuPart& part, size_t begin, size_t end,
    const std::function<cudaError_t(const cuda::CodecPlan&, uint32_t, uint32_t)>& run) {
  for (size_t i = begin; i < end;) {
    const uint32_t plan = model.plan_of(part.cells[i].layer);
    size_t next = i + 1;
    while (next < end && model.plan_of(part.cells[next].layer) == plan) ++next;
    SKETCHKV_RETURN_IF_CUDA_ERROR(
        run(model.plan(plan), static_cast<uint32_t>(i - begin), static_cast<uint32_t>(next - i)));
    i = next;
  }
  return absl::OkStatus();
}

absl::Status LaunchChecksums(const CellTables& tables, size_t count, cudaStream_t stream) {
  return CudaStatus(cuda::LaunchChecksum({.cells = tables.device_stored(),
                                          .num_cells = static_cast<uint32_t>(count),
                                          .checksums = tables.device_checksums()},
                                         stream),
                    "checksums");
}

absl::Status CheckFinite(const WriteHandle::Cell& cell, const cuda::EncodeArgs::Checks& checks) {
  for (const uint32_t half : {0, 1}) {
    if (checks.not_finite[half] == 0) continue;
    const uint32_t at = ~checks.not_finite[half];
    return AtCell(cell, absl::InvalidArgumentError(
                            absl::StrCat(half == 0 ? "keys" : "values", ": token ", at / cuda::kDim,
                                         " channel ", at % cuda::kDim, " is not finite")));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status EncodeOn(Lane* lane, const GpuModel& model, const GpuPart& part,
                      const std::byte* payload) {
  const KvLayout& layout = part.model->layout();
  SKETCHKV_ASSIGN_OR_RETURN(const cuda::RowType type,
                            RowTypeOf(layout.key_dtype, layout.value_dtype));
  const RawPartFormat raw(layout, part.layout.range, part.layout.num_tokens, part.layout.raw_order);
  for (size_t begin = 0; begin < part.cells.size(); begin += CellTables::kMaxCells) {
    const size_t end = std::min(part.cells.size(), begin + CellTables::kMaxCells);
    CellTables tables(lane, end - begin);
    SKETCHKV_RETURN_IF_ERROR(FillTables(part, raw, payload, begin, end, tables));
    SKETCHKV_RETURN_IF_ERROR(tables.Up());
    const auto [layer, head] = part.cells[begin];
    SKETCHKV_RETURN_IF_ERROR(EachPlan(
        model, part, begin, end, [&](const cuda::CodecPlan& plan, uint32_t first, uint32_t count) {
          return cuda::LaunchEncode(plan,
                                    {.cells = tables.device_rows() + first,
                                     .num_cells = count,
                                     .type = type,
                                     .key_stride = raw.KeysAt(layer, head).stride_bytes,
                                     .value_stride = raw.ValuesAt(layer, head).stride_bytes,
                                     .checks = tables.device_checks() + first},
                                    lane->stream());
        }));
    SKETCHKV_RETURN_IF_ERROR(LaunchChecksums(tables, end - begin, lane->stream()));
    SKETCHKV_RETURN_IF_ERROR(tables.Down());
    for (size_t i = begin; i < end; ++i) {
      SKETCHKV_RETURN_IF_ERROR(CheckFinite(part.cells[i], tables.checks()[i - begin]));
      part.checksums[i] = tables.checksums()[i - begin];
    }
  }
  return absl::OkStatus();
}

absl::Status DecodeOn(Lane* lane, const GpuModel& model, const GpuPart& part, DType dtype,
                      std::byte* payload) {
  SKETCHKV_ASSIGN_OR_RETURN(const cuda::RowType type, RowTypeOf(dtype, dtype));
  const RawPartFormat raw(part.model->layout(), part.layout.range, part.layout.num_tokens,
                          part.layout.raw_order, dtype, dtype);
  for (size_t begin = 0; begin < part.cells.size(); begin += CellTables::kMaxCells) {
    const size_t end = std::min(part.cells.size(), begin + CellTables::kMaxCells);
    CellTables tables(lane, end - begin);
    SKETCHKV_RETURN_IF_ERROR(FillTables(part, raw, payload, begin, end, tables));
    SKETCHKV_RETURN_IF_ERROR(tables.Up());
    const auto [layer, head] = part.cells[begin];
    SKETCHKV_RETURN_IF_ERROR(LaunchChecksums(tables, end - begin, lane->stream()));
    SKETCHKV_RETURN_IF_ERROR(EachPlan(
        model, part, begin, end, [&](const cuda::CodecPlan& plan, uint32_t first, uint32_t count) {
          return cuda::LaunchDecode(plan,
                                    {.cells = tables.device_rows() + first,
                                     .num_cells = count,
                                     .type = type,
                                     .key_stride = raw.KeysAt(layer, head).stride_bytes,
                                     .value_stride = raw.ValuesAt(layer, head).stride_bytes},
                                    lane->stream());
        }));
    SKETCHKV_RETURN_IF_ERROR(tables.Down());
    std::copy_n(tables.checksums(), end - begin, part.checksums.begin() + begin);
  }
  return absl::OkStatus();
}

}  // namespace sketchkv::gpu
