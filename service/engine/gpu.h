#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/codec.h"
#include "service/engine/model_registry.h"
#include "service/engine/part.h"
#include "service/engine/patience.h"
#include "service/engine/payload.h"
#include "service/pool/block_pool.h"

namespace sketchkv {

// Where numbers of a call lie.
enum class Place : uint8_t { kHost, kGpu };

// What names an allocation of another process on the same card: the bytes of a cudaIpcMemHandle_t.
using GpuIpcHandle = std::array<uint8_t, 64>;

// Bytes of a process on the card, ours or another; they stay open as long as `owner` lives.
struct GpuBytes {
  std::span<std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// Blocks in the gpu tier, in the order of their tokens: all but the last are full.
struct GpuBlocks {
  std::span<std::byte* const> slots;
  std::shared_ptr<const void> owner;  // keeps `slots` and the blocks where they are
  // The owner is there for other calls too: their table is worth keeping on the card.
  bool lasting = false;
};

// Queries of some heads of one layer over one run of blocks.
struct GpuQuery {
  std::shared_ptr<const Model> model;
  uint32_t layer = 0;
  uint32_t head_begin = 0;
  uint32_t head_count = 0;
  uint32_t num_query_tokens = 0;
  uint32_t queries_per_kv_head = 0;
  std::shared_ptr<const GpuBlocks> blocks;
  uint32_t token_begin = 0;  // counted from the first of `blocks`
  uint32_t token_end = 0;
  // [num_query_tokens][head_count * queries_per_kv_head][head_dim]
  const float* queries = nullptr;
};

// As a request's answer: rows as its queries'.
struct GpuAttention {
  GpuQuery query;
  AttentionOptions options;
  float* out = nullptr;  // [rows][value_dim], normalised
  float* lse = nullptr;  // [rows]
};

struct GpuScores {
  GpuQuery query;
  float* scores = nullptr;  // [rows][stride], on the host, without the softmax scale
  size_t stride = 0;
};

// Raw rows of a part on the card, and its cells.
struct GpuPart {
  std::shared_ptr<const Model> model;
  PartLayout layout;  // counts resolved
  std::span<const WriteHandle::Cell> cells;
  // The whole slot the cells lie in: on the card; where that is null, on the host, and the cells
  // go through memory of the card's own that was taken when it was opened.
  std::byte* slot = nullptr;
  std::byte* host_slot = nullptr;
  // [cells]: the seed of each cell's checksum, and the checksum (CellChecksummer).
  std::span<const uint64_t> seeds;
  std::span<uint32_t> checksums;
};

struct GpuEncoding {
  GpuPart part;
  const std::byte* payload = nullptr;
  // INVALID_ARGUMENT naming layer, head, token and channel of the first NaN or Inf; the other parts
  // are encoded all the same.
  absl::Status refused;
};

// What a card does for the engine: it holds the gpu tier and works on blocks where they lie there.
// Calls wait until the card is done. Thread-safe. UNAVAILABLE: the card has failed, for good;
// whatever was in its memory is lost.
class Gpu {
 public:
  virtual ~Gpu() = default;

  [[nodiscard]] virtual std::string name() const = 0;
  // Memory for the gpu tier, taken when the card was opened.
  [[nodiscard]] virtual std::vector<std::span<std::byte>> TierMemory() const = 0;
  // Whether blocks of this model may lie on the card; makes what it needs there, once.
  [[nodiscard]] virtual bool Takes(const std::shared_ptr<const Model>& model) = 0;

  [[nodiscard]] virtual absl::Status CopyToHost(std::span<const std::byte> from, std::byte* to) = 0;
  [[nodiscard]] virtual absl::Status CopyToGpu(std::span<const std::byte> from, std::byte* to) = 0;

  // Queries and answers lie at `place`. Those of the same layer, from any caller, are answered
  // together. INVALID_ARGUMENT: a query on the card is not finite. DEADLINE_EXCEEDED, CANCELLED: of
  // a caller without patience, before the last of its jobs began.
  [[nodiscard]] virtual absl::Status Attend(std::span<const GpuAttention> jobs, Place place,
                                            const Patience& patience) = 0;
  [[nodiscard]] virtual absl::Status Score(std::span<const GpuScores> jobs,
                                           const Patience& patience) = 0;

  // Encodes the cells of raw rows on the card into each part's slot and makes their checksums, with
  // what other callers bring. Rows that change meanwhile give cells that are valid, or are refused.
  [[nodiscard]] virtual absl::Status Encode(std::span<GpuEncoding> parts) = 0;
  // The same of rows on the host, of one part whose slot is on the card, if that is worth the way
  // and the card has a hand free now: else false, and nothing was done. `reading(end)`: bytes up to
  // `end` of the payload are about to be read, once and in order.
  [[nodiscard]] virtual absl::StatusOr<bool> EncodeFromHost(
      const GpuPart& part, const Payload& payload, const std::function<void(uint64_t end)>& reading,
      absl::Status* refused) = 0;
  // Decodes cells to a raw payload of part.layout.range in `dtype` on the card
  // and makes their checksums; what is damaged gives rows of any numbers.
  [[nodiscard]] virtual absl::Status Decode(const GpuPart& part, DType dtype,
                                            std::byte* payload) = 0;

  // An allocation of another process, whole, opened once and kept while somebody holds it, and a
  // while after. INVALID_ARGUMENT when the card does not know it.
  [[nodiscard]] virtual absl::StatusOr<GpuBytes> OpenShared(const GpuIpcHandle& handle) = 0;

  // Asks the card. OK until it has failed.
  [[nodiscard]] virtual absl::Status Check() = 0;

  struct Stats {
    uint64_t attention_calls_total = 0;         // of Attend
    uint64_t attention_batches_total = 0;       // of what went to the card together
    uint64_t attention_microseconds_total = 0;  // of batches
  };
  [[nodiscard]] virtual Stats GetStats() const = 0;
};

}  // namespace sketchkv
