#include "service/engine/gpu_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/cell_source.h"
#include "service/engine/checksum.h"
#include "service/engine/payload.h"

namespace sketchkv {
namespace {

// Of one Maintain.
constexpr size_t kMaxWriteBacks = 256;
constexpr size_t kMaxPromotions = 256;

// DATA_LOSS for a slot whose cells are not what was stored.
absl::Status Verify(const Model& model, const BlockView& block, std::span<const std::byte> slot) {
  const CellChecksummer checksummer(*block.key, block.num_tokens);
  const uint32_t heads = model.layout().num_kv_heads;
  for (uint32_t layer = 0; layer < model.layout().num_layers; ++layer) {
    for (uint32_t head = 0; head < heads; ++head) {
      const auto cell =
          slot.subspan(model.codec->cell_offset(layer, head), model.codec->cell_bytes(layer));
      if (checksummer.Of(layer, head, cell) == block.cell_checksums[layer * heads + head]) continue;
      return absl::DataLossError(absl::StrCat("layer ", layer, ", head ", head, ": block ",
                                              block.key->hash.ToHex(), " is not what was stored"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool GpuTier::Serves(const std::shared_ptr<const Model>& model) {
  return !failed_ && gpu_->Takes(model);
}

void GpuTier::CopyUp(const Model& model, std::span<const WriteHandle::Cell> cells,
                     std::span<const std::byte> host_slot, std::byte* gpu_slot) {
  size_t begin = 0, end = 0;  // of the slot, not copied yet
  const auto copy = [&] {
    if (begin == end || failed_) return;
    const absl::Status copied =
        gpu_->CopyToGpu(host_slot.subspan(begin, end - begin), gpu_slot + begin);
    if (!copied.ok()) Fail(copied);
  };
  for (const WriteHandle::Cell& cell : cells) {
    const size_t offset = model.codec->cell_offset(cell.layer, cell.head);
    if (offset != end) {
      copy();
      begin = offset;
    }
    end = offset + model.codec->cell_bytes(cell.layer);
  }
  copy();
}

absl::Status GpuTier::WriteBack(const ReadPins& pins, size_t index) {
  const BlockView pinned = pins[index];
  const std::shared_ptr<const Model> model =
      models_->Find(pinned.key->tenant, pinned.key->fingerprint);
  const auto lost = [&] {
    return absl::NotFoundError(
        absl::StrCat("block ", pinned.key->hash.ToHex(), " was lost with the GPU"));
  };
  if (model == nullptr || failed_) return lost();
  MutexLock lock(&write_back_mu_);
  // Of the block that is pinned: another may have its key by now, and an orphan is not found by it.
  SKETCHKV_ASSIGN_OR_RETURN(const bool stale, pool_->IsStale(pins, index));
  if (!stale) return absl::OkStatus();
  // The pool shows bytes that do not change; these are not shown to anybody yet.
  auto* const host = const_cast<std::byte*>(pinned.bytes.data());
  const absl::Status copied = gpu_->CopyToHost({pinned.gpu, pinned.bytes.size()}, host);
  if (!copied.ok()) {
    Fail(copied);
    return lost();
  }
  const absl::Status verified = Verify(*model, pinned, pinned.bytes);
  if (!verified.ok()) {
    pool_->Discard(*pinned.key);
    return verified;
  }
  pool_->MarkWritten(pins, index);
  return absl::OkStatus();
}

void GpuTier::VerifyCopy(const Model& model, const BlockView& block) {
  if (failed_) return;
  const std::shared_ptr<std::byte> copy = NewBytes(block.bytes.size());
  const std::span<const std::byte> bytes(copy.get(), block.bytes.size());
  const absl::Status copied = gpu_->CopyToHost({block.gpu, bytes.size()}, copy.get());
  if (!copied.ok()) return Fail(copied);
  if (!Verify(model, block, bytes).ok()) pool_->Discard(*block.key);
}

void GpuTier::NoteUse(const AttentionTarget& target) {
  if (target.host_ranges.empty() || !wants_notes_.load(std::memory_order_relaxed)) return;
  const auto gpu = target.pins->gpu();
  MutexLock lock(&mu_);
  for (size_t i = 0; i < gpu.size(); ++i) {
    if (gpu[i] != nullptr) continue;
    const BlockKey& key = *(*target.pins)[i].key;
    if (!noted_.insert(key).second) continue;
    order_.push_back(key);
    if (order_.size() < kMaxPromotions) continue;
    wants_notes_ = false;
    return;
  }
}

void GpuTier::Maintain() {
  if (failed_) return;
  const absl::Status alive = gpu_->Check();
  if (!alive.ok()) return Fail(alive);
  WriteBackStale();
  Promote();
}

void GpuTier::WriteBackStale() {
  const ReadPins stale = pool_->PinStale(kMaxWriteBacks);
  for (size_t i = 0; i < stale.size() && !failed_; ++i) (void)WriteBack(stale, i);
}

void GpuTier::Promote() {
  std::vector<BlockKey> keys;
  {
    MutexLock lock(&mu_);
    keys.swap(order_);
    noted_.clear();
  }
  wants_notes_ = true;
  for (PromotionHandle& promotion : pool_->ReservePromotions(keys)) {
    if (failed_) return;
    const BlockView block = promotion.block();
    const std::shared_ptr<const Model> model =
        models_->Find(block.key->tenant, block.key->fingerprint);
    if (model == nullptr) continue;  // unregistered meanwhile
    if (!Verify(*model, block, block.bytes).ok()) {
      pool_->Discard(*block.key);
      continue;
    }
    const absl::Status copied = gpu_->CopyToGpu(block.bytes, promotion.gpu_slot().data());
    if (!copied.ok()) return Fail(copied);
    (void)promotion.Commit();
  }
}

void GpuTier::Fail(const absl::Status& why) {
  MutexLock lock(&fail_mu_);
  if (failed_) return;
  // First: who sees failed_ counts on stale blocks being gone.
  lost_blocks_ += pool_->CloseGpu();
  MutexLock reason(&mu_);
  why_ = why;
  failed_ = true;
}

GpuTier::Stats GpuTier::GetStats() {
  MutexLock lock(&mu_);
  return {.failed = failed_, .why = why_, .lost_blocks = lost_blocks_};
}

}  // namespace sketchkv
