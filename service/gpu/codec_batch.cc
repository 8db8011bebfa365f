#include "service/gpu/codec_batch.h"

#include <cstring>

#include "kernels/base/status_macros.h"

namespace sketchkv::gpu {
namespace {

constexpr size_t kCellAlignment = 64;

}  // namespace

bool CodecBatch::Launch::Takes(const CodecPiece& piece, const CodecPiece::Run& run) const {
  return way == piece.way() && kernels == run.kernels && cells.SameRows(run.cells);
}

bool CodecBatch::Add(CodecPiece* piece) {
  const size_t bytes = piece->StagingBytes();
  if (!pieces_.empty() && used_ + bytes + kCellAlignment > bytes_) return false;
  used_ += bytes;
  num_cells_ += piece->cells().size();
  pieces_.push_back(piece);
  Sort(piece);
  return true;
}

void CodecBatch::Sort(CodecPiece* piece) {
  for (const CodecPiece::Run& run : piece->runs()) {
    Launch* to = nullptr;
    for (Launch& launch : launches_) {
      if (launch.Takes(*piece, run)) to = &launch;
    }
    if (to == nullptr) {
      to = &launches_.emplace_back(Launch{piece->way(), run.kernels, run.cells, {}});
      to->cells.num_cells = 0;
    }
    to->cells.num_cells += run.cells.num_cells;
    to->parts.push_back({piece, run.begin, run.cells.num_cells, 0});
  }
}

void CodecBatch::LayOut() {
  // What needs most alignment comes first.
  stored_ = begin_ + num_cells_ * GpuLayer::kCellBytes;
  checks_ = stored_ + num_cells_ * sizeof(cuda::StoredCell);
  checksums_ = checks_ + num_cells_ * sizeof(cuda::EncodeArgs::Checks);
  tables_end_ = checksums_ + num_cells_ * sizeof(uint32_t);
  host_cells_ = (tables_end_ + kCellAlignment - 1) / kCellAlignment * kCellAlignment;
  decoded_end_ = host_cells_;
  for (CodecPiece* piece : pieces_) {
    if (piece->way() != CodecWay::kDecode) continue;
    piece->CopyHostCellsTo(lane_->host(decoded_end_));
    piece->PlaceHostCells(Device<uint8_t>(decoded_end_));
    decoded_end_ += piece->host_bytes();
  }
  encoded_end_ = decoded_end_;
  for (CodecPiece* piece : pieces_) {
    if (piece->way() != CodecWay::kEncode) continue;
    piece->PlaceHostCells(Device<uint8_t>(encoded_end_));
    encoded_end_ += piece->host_bytes();
  }
  size_t first = 0;
  for (Launch& launch : launches_) {
    launch.cells.offset = begin_ + first * GpuLayer::kCellBytes;
    size_t of_launch = 0;
    for (Cells& cells : launch.parts) {
      cells.first = first + of_launch;
      launch.kernels->FillCells(lane_, launch.cells, of_launch,
                                cells.piece->cells().subspan(cells.begin, cells.count));
      auto* const stored = Host<cuda::StoredCell>(stored_) + cells.first;
      for (size_t i = 0; i < cells.count; ++i) stored[i] = cells.piece->Stored(cells.begin + i);
      of_launch += cells.count;
    }
    first += of_launch;
  }
  std::memset(lane_->host(checks_), 0, checksums_ - checks_);
}

absl::Status CodecBatch::StartAll(CodecWay way) const {
  for (const Launch& launch : launches_) {
    if (launch.way != way) continue;
    if (way == CodecWay::kDecode) {
      SKETCHKV_RETURN_IF_ERROR(launch.kernels->Decode(lane_, launch.cells));
      continue;
    }
    auto* const checks = Device<cuda::EncodeArgs::Checks>(checks_) + launch.parts.front().first;
    SKETCHKV_RETURN_IF_ERROR(launch.kernels->Encode(lane_, launch.cells, checks));
  }
  return absl::OkStatus();
}

absl::Status CodecBatch::Start() {
  LayOut();
  SKETCHKV_RETURN_IF_ERROR(lane_->Up(begin_, checksums_));
  SKETCHKV_RETURN_IF_ERROR(lane_->Up(host_cells_, decoded_end_));
  SKETCHKV_RETURN_IF_ERROR(StartAll(CodecWay::kEncode));
  SKETCHKV_RETURN_IF_CUDA_ERROR(
      cuda::LaunchChecksum({.cells = Device<cuda::StoredCell>(stored_),
                            .num_cells = static_cast<uint32_t>(num_cells_),
                            .checksums = Device<uint32_t>(checksums_)},
                           lane_->stream()));
  SKETCHKV_RETURN_IF_ERROR(StartAll(CodecWay::kDecode));
  SKETCHKV_RETURN_IF_ERROR(lane_->Down(decoded_end_, encoded_end_));
  return lane_->Down(checks_, tables_end_);
}

void CodecBatch::Finish() {
  size_t encoded = decoded_end_;
  for (const CodecPiece* piece : pieces_) {
    if (piece->way() != CodecWay::kEncode) continue;
    piece->CopyHostCellsFrom(lane_->host(encoded));
    encoded += piece->host_bytes();
  }
  for (const Launch& launch : launches_) {
    for (const Cells& cells : launch.parts) {
      const auto* const checks = Host<cuda::EncodeArgs::Checks>(checks_) + cells.first;
      const auto* const checksums = Host<uint32_t>(checksums_) + cells.first;
      for (size_t i = 0; i < cells.count; ++i) {
        cells.piece->Take(cells.begin + i, checks[i], checksums[i]);
      }
    }
  }
}

}  // namespace sketchkv::gpu
