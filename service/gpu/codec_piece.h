#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "service/engine/gpu.h"
#include "service/gpu/gpu_layer.h"
#include "service/gpu/gpu_model.h"

namespace sketchkv::gpu {

// Which way a part goes.
enum class CodecWay : uint8_t { kEncode, kDecode };

// Raw rows of a part on the card.
struct CodecRows {
  DType key_type, value_type;
  std::byte* payload;
};

// Some cells of a part and their rows as the kernels take them. Whoever asks for a part makes them,
// so that little is left to do for whoever brings a batch to the card.
class CodecPiece {
 public:
  // Cells next to each other that one launch takes.
  struct Run {
    const GpuLayer* kernels;
    GpuLayer::Cells cells;  // without offset
    size_t begin;           // of cells()
  };

  // The cells of `part` from `begin` on that go together: all of them, or as many as have `bytes`
  // of what StagingBytes counts, but at least one. All outlive it.
  CodecPiece(const GpuModel& model, const GpuPart& part, CodecWay way, const CodecRows& rows,
             size_t begin, size_t bytes);

  [[nodiscard]] CodecWay way() const { return way_; }
  [[nodiscard]] size_t begin() const { return begin_; }
  [[nodiscard]] size_t end() const { return begin_ + cells_.size(); }  // of the part's cells
  [[nodiscard]] std::span<const Run> runs() const { return runs_; }
  // What a lane's staging area holds of them.
  [[nodiscard]] size_t StagingBytes() const;

  // Cells whose slot is on the host lie one behind the other in a lane's staging area.
  [[nodiscard]] size_t host_bytes() const { return host_bytes_; }
  void PlaceHostCells(uint8_t* on_card);
  void CopyHostCellsTo(std::byte* staged) const;
  void CopyHostCellsFrom(const std::byte* staged) const;

  [[nodiscard]] std::span<const cuda::GeneralCell> cells() const { return cells_; }
  [[nodiscard]] cuda::StoredCell Stored(size_t i) const;  // of cells()

  // What the card said of cell i.
  void Take(size_t i, const cuda::EncodeArgs::Checks& checks, uint32_t checksum);
  // INVALID_ARGUMENT naming cell, token and channel of the first number that is not finite.
  [[nodiscard]] const absl::Status& refused() const { return refused_; }

 private:
  const GpuPart& part_;
  const CodecWay way_;
  const size_t begin_;
  std::vector<cuda::GeneralCell> cells_;
  std::vector<Run> runs_;
  size_t host_bytes_ = 0;
  absl::Status refused_;
  size_t refused_cell_ = 0;  // where there is one
};

}  // namespace sketchkv::gpu
