#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "sketchkv/model.h"

// Plain types of the client's interface. Words are those of the protocol (proto/sketchkv/v1).
namespace sketchkv {
// Keeps the symbols of these types apart from the service's types of the same words.
inline namespace sdk {

// How payloads go to the server and back. Control always goes over gRPC.
enum class Transport : uint8_t { kGrpc = 1, kSharedMemory = 2, kGpuMemory = 3 };

// Order of a raw payload of one layer: [tokens, heads, dim] or [heads, tokens, dim].
enum class RawOrder : uint8_t { kNhd = 1, kHnd = 2 };

// A rectangle of cells; a count of 0 means all from the first on.
struct PartRange {
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;
  uint32_t head_begin = 0;
  uint32_t head_count = 0;
};

// What a block is called: 16-32 bytes chained by the caller (see ChainHash).
using BlockId = std::string;

// Bytes in the memory of a GPU that the server, on the same machine, works on too, in an allocation
// of this process. Plain numbers: naming them needs no CUDA.
//
// What this process's streams do with the bytes must be done before the call (synchronise them);
// what the server does is done when the call returns with the server's answer, good or bad. A call
// that ends without one (DEADLINE_EXCEEDED, CANCELLED, UNAVAILABLE) may be worked on until its
// timeout and a second after it: until then use the bytes for nothing else. The server keeps the
// allocation open for some seconds after its last use, and its memory is not free before.
// UNAVAILABLE: the server has no GPU, or it failed; INVALID_ARGUMENT: another GPU, or bytes outside
// the allocation.
struct GpuMemory {
  std::array<std::byte, 64> ipc_handle{};  // the cudaIpcMemHandle_t of the allocation
  uint64_t offset = 0;                     // bytes from its beginning, a multiple of 16
  uint64_t length = 0;                     // bytes
};

struct PutPart {
  std::string model;
  BlockId block_hash;
  BlockId parent_hash;  // empty: a root
  uint32_t num_tokens = 0;
  PartRange range;
  RawOrder order = RawOrder::kNhd;
  // Layer after layer of the range: keys, then values, in `order`, the layout's element types.
  // Or, with encoded = true, cells in the order [layer][head]. Alive until the call is done.
  std::span<const std::byte> payload;
  bool encoded = false;
  // Where a raw payload lies instead; `payload` is empty then. The server encodes it, whatever
  // ClientOptions::encode_locally says.
  std::optional<GpuMemory> gpu_payload;
};

// Bytes in memory shared with the server (Client::AllocateShared). Movable; may outlive the client.
class SharedBuffer {
 public:
  SharedBuffer() = default;
  SharedBuffer(std::span<std::byte> bytes, std::shared_ptr<void> owner)
      : bytes_(bytes), owner_(std::move(owner)) {}
  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  std::shared_ptr<void> owner_;
};

struct PutResult {
  bool already_present = false;  // nothing of it was new
  bool sealed = false;           // the block is complete now
};

struct LookupResult {
  uint32_t num_blocks = 0;  // of the longest stored prefix
  uint32_t num_tokens = 0;
  uint64_t lease_id = 0;  // 0: none was asked for or granted
  uint32_t lease_ttl_ms = 0;
};

struct GetPart {
  std::string model;
  BlockId block_hash;
  PartRange range;
  // Raw output of this element type and order; none: encoded cells.
  std::optional<ElementType> type = ElementType::kBf16;
  RawOrder order = RawOrder::kNhd;
  // Where to write the payload, at its beginning; empty: to GetResult::payload, whose fresh pages
  // may take as long as the rest of the get. Must live until the get is done, overlap with no other
  // part's, and holds anything when that fails. INVALID_ARGUMENT when the payload is larger.
  std::span<std::byte> into;
  // The same for raw output on a GPU; `into` is empty then.
  std::optional<GpuMemory> into_gpu;
};

struct GetResult {
  uint32_t num_tokens = 0;
  uint64_t payload_bytes = 0;
  std::vector<std::byte> payload;  // as PutPart::payload; empty with GetPart::into*
};

// One sequence in one layer.
struct AttentionItem {
  // Exactly one of these names what to attend over.
  BlockId tip;                  // this block and all its ancestors
  std::vector<BlockId> blocks;  // these blocks in order
  uint64_t lease_id = 0;        // the chain the lease pins

  uint32_t layer = 0;
  uint32_t head_begin = 0;
  uint32_t head_count = 0;  // kv heads; 0: all from head_begin on
  uint32_t num_query_tokens = 1;
  uint32_t token_begin = 0;
  std::optional<uint32_t> token_end;  // one past the last; none: all
  float softmax_scale = 0.0f;         // 0: 1/sqrt(head_dim)
  float logit_softcap = 0.0f;         // 0: none
};

struct AttentionCall {
  std::string model;
  uint32_t queries_per_kv_head = 1;  // GQA ratio, 1-128
  std::vector<AttentionItem> items;
  // Item after item: [num_query_tokens, head_count * queries_per_kv_head, head_dim].
  std::span<const float> queries;
  // Where they lie instead; `queries` is empty then.
  std::optional<GpuMemory> gpu_queries;
  // Where to write what would be the outputs, for Attend alone: float32, item after item, out, then
  // lse, each as in AttentionOutput, whose vectors stay empty. With both on the GPU, and every
  // block in the server's GPU tier, no number leaves it.
  std::optional<GpuMemory> gpu_outputs;
};

// Partial attention of one item.
struct AttentionOutput {
  std::vector<float> out;  // [num_query_tokens, query heads, value_dim]
  std::vector<float> lse;  // [num_query_tokens, query heads], natural log; -inf over no tokens
  // The way the call's outputs came: shared memory where there is some, and enough bytes for it to
  // be faster.
  Transport transport = Transport::kGrpc;
};

// Logits of one item, after scale and softcap.
struct ScoreOutput {
  uint32_t token_begin = 0;
  uint32_t num_tokens = 0;
  std::vector<float> logits;  // [num_query_tokens * query heads, num_tokens]
};

struct ServerStats {
  struct Tier {
    std::string name;
    uint64_t capacity_bytes = 0, page_bytes = 0, used_bytes = 0, pinned_bytes = 0, leased_bytes = 0;
    uint64_t blocks = 0, sealed_blocks = 0;
  };
  std::vector<Tier> tiers;
  struct Gpu {
    std::string name;
    std::string failure;        // why it failed; empty: it works
    uint64_t stale_blocks = 0;  // whose bytes are there alone, to be written to the host
    uint64_t promoted_total = 0, demoted_total = 0, fallback_total = 0, lost_total = 0;
    uint64_t attention_calls_total = 0, attention_batches_total = 0;
    uint64_t attention_microseconds_total = 0;
  };
  std::optional<Gpu> gpu;  // of a server with a card
  uint64_t leases = 0, evicted_total = 0, expired_total = 0, deleted_total = 0;
  uint64_t integrity_failures_total = 0, models = 0;
  uint64_t put_raw_bytes_total = 0, put_stored_bytes_total = 0;
  std::string isa, version;
};

struct CacheEvent {
  enum class Type : uint8_t { kStored = 1, kSealed = 2, kEvicted = 3, kDeleted = 4, kGap = 5 };
  uint64_t sequence = 0;
  Type type = Type::kStored;
  std::string model;
  BlockId block_hash, parent_hash;
};

}  // namespace sdk
}  // namespace sketchkv
