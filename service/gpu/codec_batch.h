#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "service/gpu/codec_piece.h"
#include "service/gpu/gpu_layer.h"
#include "service/gpu/lane.h"

namespace sketchkv::gpu {

// Pieces that go to the card together on one lane: what has the kernels and the shape of rows in
// common in one launch, and checksums of all in another.
class CodecBatch {
 public:
  // Has the `bytes` of the lane's staging area from `begin` on, a multiple of 64, to itself. All
  // outlive it.
  CodecBatch(Lane* lane, size_t begin, size_t bytes) : lane_(lane), begin_(begin), bytes_(bytes) {}
  CodecBatch(const CodecBatch&) = delete;
  CodecBatch& operator=(const CodecBatch&) = delete;

  // False: it does not fit any more. An empty batch takes every piece.
  [[nodiscard]] bool Add(CodecPiece* piece);
  // Asks the lane's stream for all of it.
  [[nodiscard]] absl::Status Start();
  // Once the stream has come so far: gives the pieces what is theirs.
  void Finish();

 private:
  // Some cells of a piece, which the kernels find one behind the other.
  struct Cells {
    CodecPiece* piece;
    size_t begin;  // of the piece's
    size_t count;
    size_t first;  // of the batch's
  };
  struct Launch {
    CodecWay way;
    const GpuLayer* kernels;
    GpuLayer::Cells cells;
    std::vector<Cells> parts;

    [[nodiscard]] bool Takes(const CodecPiece& piece, const CodecPiece::Run& run) const;
  };

  void Sort(CodecPiece* piece);
  // Fills the tables and, behind them, the cells to decode that come from the host.
  void LayOut();
  absl::Status StartAll(CodecWay way) const;
  // Where kernels find these on the card, and where they lie on the host.
  template <typename T>
  [[nodiscard]] T* Device(size_t offset) const {
    return reinterpret_cast<T*>(lane_->device(offset));
  }
  template <typename T>
  [[nodiscard]] T* Host(size_t offset) const {
    return reinterpret_cast<T*>(lane_->host(offset));
  }

  Lane* const lane_;
  const size_t begin_, bytes_;
  std::vector<CodecPiece*> pieces_;
  std::vector<Launch> launches_;
  size_t used_ = 0;  // of bytes_
  size_t num_cells_ = 0;
  // Offsets in the staging area.
  size_t stored_ = 0, checks_ = 0, checksums_ = 0, tables_end_ = 0;
  size_t host_cells_ = 0, decoded_end_ = 0, encoded_end_ = 0;
};

}  // namespace sketchkv::gpu
