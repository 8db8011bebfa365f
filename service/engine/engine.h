#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "service/engine/attention.h"
#include "service/engine/executor.h"
#include "service/engine/gpu.h"
#include "service/engine/gpu_tier.h"
#include "service/engine/model_registry.h"
#include "service/engine/part.h"
#include "service/engine/patience.h"
#include "service/pool/block_pool.h"

namespace sketchkv {

class CellChecksummer;

// The use cases, in domain types: it joins codec and pool, which never see each other. Calls run on
// the caller's thread (an executor's worker) and spread over idle workers; none blocks on I/O.
// Thread-safe. Every call is on behalf of `tenant` and sees nothing of another.
class Engine {
 public:
  // All outlive the engine. `gpu`: null where the pool has no second tier.
  Engine(ModelRegistry* models, BlockPool* pool, Executor* executor, GpuTier* gpu = nullptr);

  [[nodiscard]] ModelRegistry& models() { return *models_; }
  [[nodiscard]] BlockPool& pool() { return *pool_; }

  struct PutRequest {
    std::shared_ptr<const Model> model;
    BlockHash hash;
    std::optional<BlockHash> parent;
    PartLayout part;
    bool encoded = false;
    Payload payload;
    // Where a raw payload lies instead, if it is on the card; then it may change (below).
    std::optional<GpuBytes> gpu_payload;
    // Of a payload that others may change meanwhile, in memory shared with them: asked once all of
    // it was read, before anything is stored; an error ends the put. Its checksum is not looked at.
    // Empty: the payload does not change, and has its checksum.
    std::function<absl::Status()> still_valid;
  };
  struct PutResult {
    bool already_present = false;
    bool sealed = false;
  };
  // Errors: INVALID_ARGUMENT (sizes, ranges, NaN or Inf with layer, head and token, damaged encoded
  // cell), DATA_LOSS (checksum), and those of BlockPool::Reserve and Commit; ABORTED means try
  // again. UNAVAILABLE: the payload is on the card and there is none, or it failed.
  [[nodiscard]] absl::StatusOr<PutResult> Put(uint32_t tenant, const PutRequest& request);
  // The same of several payloads on the card, which goes about them together. [requests]; an error
  // of one is none of the others.
  [[nodiscard]] std::vector<absl::StatusOr<PutResult>> PutFromGpu(
      uint32_t tenant, std::span<const PutRequest* const> requests);

  struct GetRequest {
    std::shared_ptr<const Model> model;
    BlockHash hash;
    CellRange range;
    std::optional<DType> dtype;  // none: encoded cells
    RawOrder raw_order = RawOrder::kNhd;
    // Where to write the payload, which then has no checksum; empty: memory of its own.
    std::span<std::byte> into;
    // Where `into` lies. On the card for decoded payloads only.
    Place into_place = Place::kHost;
    // With `into` on the card: whoever has given up waiting uses those bytes for something else.
    Patience patience;
  };
  // The most bytes Get answers with. INVALID_ARGUMENT as Get.
  [[nodiscard]] absl::StatusOr<uint64_t> MaxGetBytes(const GetRequest& request) const;
  // Gives the part to `sink`, unless it goes to `into` without its payload, and returns the
  // payload's checksum. Decoded cells are given a few layers at a time, and an error may follow
  // them; encoded ones are given whole and where they lie: the payload keeps the block pinned.
  // NOT_FOUND; INVALID_ARGUMENT (range, dtype, too little room in `into`); DATA_LOSS: stored bytes
  // are damaged, the block is dropped; UNAVAILABLE: `into` is on the card and there is none, or it
  // failed; CANCELLED, DEADLINE_EXCEEDED: the caller has no patience left, nothing was written
  // there.
  [[nodiscard]] absl::StatusOr<uint64_t> Get(uint32_t tenant, const GetRequest& request,
                                             PartSink* sink);

  // Whether parts of this model whose raw bytes lie on the card are encoded and decoded there. If
  // not, those bytes go through memory of the host, all at once.
  [[nodiscard]] bool CodesOnGpu(const std::shared_ptr<const Model>& model);

  // Transform; nothing is stored. To `sink` as Get, nothing before the checksum of `payload` was
  // verified. Errors as Put and Get.
  [[nodiscard]] absl::StatusOr<uint64_t> Encode(const Model& model, const PartLayout& part,
                                                const Payload& payload, PartSink* sink);
  [[nodiscard]] absl::StatusOr<uint64_t> Decode(const Model& model, const PartLayout& part,
                                                const Payload& payload, DType dtype,
                                                RawOrder raw_order, PartSink* sink);

  struct LookupResult {
    uint32_t num_blocks = 0;
    uint32_t num_tokens = 0;
    std::optional<BlockPool::Lease> lease;
  };
  // lease_ttl 0: no lease. A lease that the pool's cap refuses is simply not given.
  [[nodiscard]] absl::StatusOr<LookupResult> Lookup(uint32_t tenant, const Model& model,
                                                    std::span<const BlockHash> chain,
                                                    std::chrono::milliseconds lease_ttl);

  // NOT_FOUND (names the first missing ancestor), INVALID_ARGUMENT, DEADLINE_EXCEEDED, CANCELLED.
  // `answer` has AnswerFloats(request) numbers; what is in it after an error is no answer.
  // UNAVAILABLE: queries or answer are on the card and there is none, or it failed.
  [[nodiscard]] absl::Status Attend(uint32_t tenant, const AttentionRequest& request,
                                    std::span<float> answer);
  // One result an item. Errors as Attend; INVALID_ARGUMENT too for more than 256 MiB of logits.
  [[nodiscard]] absl::StatusOr<std::vector<ScoreResult>> Score(uint32_t tenant,
                                                               const AttentionRequest& request);

  // Blocks hidden, subtrees included; unknown hashes count 0.
  [[nodiscard]] uint64_t Delete(uint32_t tenant, const Model& model,
                                std::span<const BlockHash> hashes);
  // Forgets the model and drops its blocks; returns how many.
  [[nodiscard]] absl::StatusOr<uint64_t> Unregister(uint32_t tenant, const std::string& name);

  // Verifies up to `limit` sealed blocks from *cursor on, of any tenant, and their copies on the
  // card, and drops the damaged ones. Moves the cursor on, back to 0 after the last block. Returns
  // how many were verified.
  size_t Scrub(uint64_t* cursor, size_t limit);

  struct Stats {
    uint64_t put_raw_bytes_total = 0;     // as raw, whatever travelled
    uint64_t put_stored_bytes_total = 0;  // of cells written
    struct Card {
      std::string name;
      std::string failure;  // why it failed; empty: it works
      Gpu::Stats work;
    };
    std::optional<Card> card;
  };
  [[nodiscard]] Stats GetStats() const;

 private:
  absl::StatusOr<uint64_t> GetEncoded(const GetRequest& request, const CellRange& range,
                                      const std::shared_ptr<const ReadPins>& pins, PartSink* sink);
  absl::StatusOr<uint64_t> GetDecoded(const GetRequest& request, const CellRange& range,
                                      const ReadPins& pins, PartSink* sink);
  absl::StatusOr<std::shared_ptr<const AttentionTarget>> Resolve(uint32_t tenant,
                                                                 const AttentionRequest& request,
                                                                 const AttentionItem& item,
                                                                 bool use_gpu);
  absl::StatusOr<AttentionTargets> ResolveAll(uint32_t tenant, const AttentionRequest& request);
  // Calls compute(targets); once more, on the host alone, if the card fails during the first.
  template <typename Compute>
  auto WithTargets(uint32_t tenant, const AttentionRequest& request, const Compute& compute)
      -> decltype(compute(AttentionTargets()));
  [[nodiscard]] Gpu* card() { return gpu_ == nullptr ? nullptr : gpu_->gpu(); }
  // UNAVAILABLE without a card that works.
  absl::Status CheckGpu() const;
  // What the card said, passed on; when it failed, so does the gpu tier.
  absl::Status NoteGpu(absl::Status status);
  // A put whose payload is on the card as one whose payload is not.
  absl::StatusOr<PutRequest> CopyPayloadToHost(const PutRequest& request);
  // A put whose cells are claimed. Nothing is visible before EndPut.
  struct PendingPut {
    const PutRequest* request;
    CellRange range;
    BlockKey key;
    WriteHandle handle;
    std::vector<uint32_t> checksums;  // of the handle's cells, in its order

    // What the card is told of it. `seeds`: Seeds(), which outlive the part.
    [[nodiscard]] std::vector<uint64_t> Seeds() const;
    [[nodiscard]] GpuPart Part(std::span<const uint64_t> seeds);
  };
  absl::StatusOr<PendingPut> BeginPut(uint32_t tenant, const PutRequest& request, bool want_gpu);
  // Encodes into the handle's cells, and makes their checksums: by the card where that is at hand,
  // else on the host.
  absl::StatusOr<HostBytes> EncodeFromHost(PendingPut* put);
  absl::Status EncodeOnHost(PendingPut* put);
  // False: the card does not do it now, or refuses it.
  absl::StatusOr<bool> EncodeHostRowsOnGpu(PendingPut* put);
  // The same of payloads on the card, by the card. `refused`: [puts], what is wrong with each.
  absl::Status EncodeOnGpu(std::span<PendingPut* const> puts, std::span<absl::Status> refused);
  absl::StatusOr<PutResult> EndPut(PendingPut* put, HostBytes written);
  absl::StatusOr<uint64_t> GetToGpu(const BlockKey& key, const GetRequest& request,
                                    const CellRange& range, PartSink* sink);
  absl::StatusOr<uint64_t> GetToGpuOverHost(const BlockKey& key, const GetRequest& request,
                                            const CellRange& range, PartSink* sink);
  // Of queries or an answer on the card.
  absl::Status AttendOnGpu(uint32_t tenant, const AttentionRequest& request,
                           std::span<float> answer);
  // Queries on the card are copied to `queries`.
  absl::Status QueriesToHost(AttentionRequest* request, std::vector<float>* queries);
  // Pins one block with its bytes on the host.
  absl::StatusOr<ReadPins> PinForHost(const BlockKey& key);
  // Writes back those that are on the card alone. Errors as GpuTier::WriteBack.
  absl::Status BringToHost(const ReadPins& pins);
  // Whether the payload fits where it is to go: INVALID_ARGUMENT with both numbers.
  static absl::Status CheckRoom(const GetRequest& request, uint64_t bytes);
  // DATA_LOSS when a cell of the block was stored with another checksum.
  static absl::Status CheckCell(const Model& model, const BlockView& block,
                                const WriteHandle::Cell& cell, uint32_t checksum);
  // Checks the cells of a pinned block and hands each that is as it was stored to `use` (may be
  // empty), on any thread, and runs `meanwhile`. DATA_LOSS for a damaged one: the block is dropped.
  using UseCell = std::function<absl::Status(const WriteHandle::Cell&, std::span<const std::byte>)>;
  absl::Status VerifyOrDiscard(const Model& model, const BlockView& block, const CellRange& range,
                               const std::function<void()>& meanwhile, const UseCell& use);

  // Constant after construction.
  ModelRegistry* const models_;
  BlockPool* const pool_;
  Executor* const executor_;
  GpuTier* const gpu_;

  std::atomic<uint64_t> put_raw_bytes_{0};
  std::atomic<uint64_t> put_stored_bytes_{0};
};

}  // namespace sketchkv
