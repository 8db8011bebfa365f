#include "service/engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

// The most logits one Score answers, in bytes: they are all in memory at once.
constexpr uint64_t kMaxScoreBytes = uint64_t{256} << 20;

// Of all different targets of one request together: their tables are in memory too.
constexpr uint64_t kMaxTargetBlocks = uint64_t{1} << 20;
// Of one target: token numbers are 32 bits, with room for a split beyond the last.
constexpr uint64_t kMaxTargetTokens = uint64_t{1} << 31;

absl::Status StatusOf(const absl::Status& status) { return status; }
template <typename T>
absl::Status StatusOf(const absl::StatusOr<T>& value) {
  return value.status();
}

absl::Status CheckScoreBytes(const AttentionRequest& request, const AttentionTargets& targets) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < targets.size(); ++i) {
    const AttentionItem& item = request.items[i];
    bytes += uint64_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head *
             (targets[i]->token_end - targets[i]->token_begin) * sizeof(float);
  }
  if (bytes <= kMaxScoreBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the logits asked for have ", bytes, " bytes, of at most ", kMaxScoreBytes));
}

}  // namespace

Engine::Engine(ModelRegistry* models, BlockPool* pool, Executor* executor, GpuTier* gpu)
    : models_(models), pool_(pool), executor_(executor), gpu_(gpu) {}

absl::StatusOr<Engine::LookupResult> Engine::Lookup(uint32_t tenant, const Model& model,
                                                    std::span<const BlockHash> chain,
                                                    std::chrono::milliseconds lease_ttl) {
  LookupResult result;
  // A block may go between the look-up and the lease; the shorter prefix is looked up again then.
  while (true) {
    const size_t found = pool_->LookupPrefix(tenant, model.fingerprint, chain);
    if (found == 0) return LookupResult{};
    const BlockKey tip{
        .tenant = tenant, .fingerprint = model.fingerprint, .hash = chain[found - 1]};
    absl::StatusOr<ReadPins> pin = pool_->Pin(tip);
    if (!pin.ok()) continue;
    result.num_blocks = static_cast<uint32_t>(found);
    // Only the last block of a chain may be short.
    result.num_tokens =
        static_cast<uint32_t>((found - 1) * model.layout().block_tokens) + (*pin)[0].num_tokens;
    if (lease_ttl.count() == 0) return result;
    absl::StatusOr<BlockPool::Lease> lease = pool_->AcquireLease(tip, lease_ttl);
    if (lease.ok()) {
      result.lease = *lease;
      return result;
    }
    if (!absl::IsNotFound(lease.status())) return result;
  }
}

absl::StatusOr<std::shared_ptr<const AttentionTarget>> Engine::Resolve(
    uint32_t tenant, const AttentionRequest& request, const AttentionItem& item, bool use_gpu) {
  const Fingerprint& fingerprint = request.model->fingerprint;
  auto target = std::make_shared<AttentionTarget>();
  if (item.lease_id != 0) {
    SKETCHKV_ASSIGN_OR_RETURN(target->pins, pool_->LeasedChain(tenant, item.lease_id));
    target->leased = true;
  } else if (item.tip.has_value()) {
    SKETCHKV_ASSIGN_OR_RETURN(
        ReadPins pins,
        pool_->PinChain({.tenant = tenant, .fingerprint = fingerprint, .hash = *item.tip}));
    target->pins = std::make_shared<const ReadPins>(std::move(pins));
  } else {
    std::vector<BlockKey> keys;
    for (const BlockHash& hash : item.blocks) {
      keys.push_back({.tenant = tenant, .fingerprint = fingerprint, .hash = hash});
    }
    SKETCHKV_ASSIGN_OR_RETURN(ReadPins pins, pool_->PinAll(keys));
    target->pins = std::make_shared<const ReadPins>(std::move(pins));
  }
  // A chain is of one model, and so are blocks that were named.
  if (target->pins->size() > 0 && (*target->pins)[0].key->fingerprint != fingerprint) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lease_id ", item.lease_id, " is of another model than ", request.model->name));
  }
  if (!use_gpu) SKETCHKV_RETURN_IF_ERROR(BringToHost(*target->pins));
  const uint64_t tokens = target->pins->token_begin().back();
  if (tokens > kMaxTargetTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("the target has ", tokens, " tokens, of at most ", kMaxTargetTokens));
  }
  const auto all = static_cast<uint32_t>(tokens);
  target->token_end = std::min(item.token_end.value_or(all), all);
  target->token_begin = std::min(item.token_begin, target->token_end);
  DealOutTokens(use_gpu, target.get());
  if (use_gpu) gpu_->NoteUse(*target);
  return target;
}

absl::StatusOr<AttentionTargets> Engine::ResolveAll(uint32_t tenant,
                                                    const AttentionRequest& request) {
  AttentionTargets targets;
  uint64_t blocks = 0;
  const bool use_gpu = gpu_ != nullptr && gpu_->Serves(request.model);
  for (size_t i = 0; i < request.items.size(); ++i) {
    const AttentionItem& item = request.items[i];
    // Batches repeat a target for many layers: its chain is walked once.
    if (i > 0) {
      const AttentionItem& last = request.items[i - 1];
      if (item.lease_id == last.lease_id && item.tip == last.tip && item.blocks == last.blocks &&
          item.token_begin == last.token_begin && item.token_end == last.token_end) {
        targets.push_back(targets.back());
        continue;
      }
    }
    SKETCHKV_RETURN_IF_ERROR(request.patience.Check());
    absl::StatusOr<std::shared_ptr<const AttentionTarget>> target =
        Resolve(tenant, request, item, use_gpu);
    if (!target.ok()) {
      return absl::Status(target.status().code(),
                          absl::StrCat("items[", i, "]: ", target.status().message()));
    }
    blocks += (*target)->pins->size();
    if (blocks > kMaxTargetBlocks) {
      return absl::InvalidArgumentError(absl::StrCat("items[0] to items[", i, "] name ", blocks,
                                                     " blocks, of at most ", kMaxTargetBlocks));
    }
    targets.push_back(*std::move(target));
  }
  return targets;
}

template <typename Compute>
auto Engine::WithTargets(uint32_t tenant, const AttentionRequest& request, const Compute& compute)
    -> decltype(compute(AttentionTargets())) {
  {
    SKETCHKV_ASSIGN_OR_RETURN(const AttentionTargets targets, ResolveAll(tenant, request));
    auto answer = compute(targets);
    const absl::Status status = StatusOf(answer);
    if (gpu_ == nullptr || !absl::IsUnavailable(status)) return answer;
    gpu_->Fail(status);
  }
  SKETCHKV_ASSIGN_OR_RETURN(const AttentionTargets targets, ResolveAll(tenant, request));
  return compute(targets);
}

absl::Status Engine::Attend(uint32_t tenant, const AttentionRequest& request,
                            std::span<float> answer) {
  SKETCHKV_RETURN_IF_ERROR(ValidateAttention(request));
  if (request.queries_place == Place::kGpu || request.answer_place == Place::kGpu) {
    return AttendOnGpu(tenant, request, answer);
  }
  return WithTargets(tenant, request, [&](const AttentionTargets& targets) {
    return ComputeAttention(request, targets, executor_, card(), answer);
  });
}

absl::StatusOr<std::vector<ScoreResult>> Engine::Score(uint32_t tenant,
                                                       const AttentionRequest& asked) {
  AttentionRequest request = asked;
  std::vector<float> queries;
  SKETCHKV_RETURN_IF_ERROR(QueriesToHost(&request, &queries));
  SKETCHKV_RETURN_IF_ERROR(ValidateAttention(request));
  return WithTargets(
      tenant, request,
      [&](const AttentionTargets& targets) -> absl::StatusOr<std::vector<ScoreResult>> {
        SKETCHKV_RETURN_IF_ERROR(CheckScoreBytes(request, targets));
        return ComputeScores(request, targets, executor_, card());
      });
}

uint64_t Engine::Delete(uint32_t tenant, const Model& model, std::span<const BlockHash> hashes) {
  uint64_t hidden = 0;
  for (const BlockHash& hash : hashes) {
    const absl::StatusOr<size_t> one =
        pool_->Delete({.tenant = tenant, .fingerprint = model.fingerprint, .hash = hash});
    if (one.ok()) hidden += *one;
  }
  return hidden;
}

absl::StatusOr<uint64_t> Engine::Unregister(uint32_t tenant, const std::string& name) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model,
                            models_->Remove(tenant, name));
  return pool_->Clear(tenant, model->fingerprint);
}

absl::StatusOr<ReadPins> Engine::PinForHost(const BlockKey& key) {
  SKETCHKV_ASSIGN_OR_RETURN(ReadPins pins, pool_->Pin(key));
  SKETCHKV_RETURN_IF_ERROR(BringToHost(pins));
  return pins;
}

absl::Status Engine::BringToHost(const ReadPins& pins) {
  if (!pins.any_host_stale()) return absl::OkStatus();
  for (size_t i = 0; i < pins.size(); ++i) {
    if (pins[i].host_stale) SKETCHKV_RETURN_IF_ERROR(gpu_->WriteBack(pins, i));
  }
  return absl::OkStatus();
}

size_t Engine::Scrub(uint64_t* cursor, size_t limit) {
  const ReadPins pins = pool_->PinNext(cursor, limit);
  for (size_t i = 0; i < pins.size(); ++i) {
    const BlockView block = pins[i];
    const std::shared_ptr<const Model> model =
        models_->Find(block.key->tenant, block.key->fingerprint);
    if (model == nullptr) continue;  // unregistered a moment ago: nobody can read it any more
    if (block.host_stale) continue;  // verified when it is written back
    const CellRange whole = *ResolveRange({}, model->layout());
    const absl::Status on_host = VerifyOrDiscard(
        *model, block, whole, /*meanwhile=*/[] {}, /*use=*/nullptr);
    if (on_host.ok() && block.gpu != nullptr) gpu_->VerifyCopy(*model, block);
  }
  return pins.size();
}

Engine::Stats Engine::GetStats() const {
  Stats stats{.put_raw_bytes_total = put_raw_bytes_, .put_stored_bytes_total = put_stored_bytes_};
  if (gpu_ != nullptr) {
    stats.card = {.name = gpu_->gpu()->name(),
                  .failure = std::string(gpu_->GetStats().why.message()),
                  .work = gpu_->gpu()->GetStats()};
  }
  return stats;
}

}  // namespace sketchkv
