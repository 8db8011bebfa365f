// Claims: from Reserve over the handle to Commit or to nothing.

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "service/pool/pool_state.h"

namespace sketchkv {
namespace {

constexpr uint32_t kMaxDimension = 65535;  // CellTable has 16 bits for each

absl::Status CheckDimension(const char* field, uint32_t value) {
  if (value >= 1 && value <= kMaxDimension) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: %d, must be 1 to %d", field, value, kMaxDimension));
}

absl::Status CheckShape(const BlockShape& shape) {
  SKETCHKV_RETURN_IF_ERROR(CheckDimension("shape.num_layers", shape.num_layers));
  SKETCHKV_RETURN_IF_ERROR(CheckDimension("shape.num_heads", shape.num_heads));
  SKETCHKV_RETURN_IF_ERROR(CheckDimension("shape.block_tokens", shape.block_tokens));
  if (shape.slot_bytes % SlabAllocator::kSlotAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shape.slot_bytes: %d, must be a multiple of %d", shape.slot_bytes,
                        SlabAllocator::kSlotAlignment));
  }
  const size_t least = SlabAllocator::kSlotAlignment * shape.num_layers * shape.num_heads;
  if (shape.slot_bytes < least) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "shape.slot_bytes: %d, but %d x %d cells of at least %d bytes need %d", shape.slot_bytes,
        shape.num_layers, shape.num_heads, SlabAllocator::kSlotAlignment, least));
  }
  return absl::OkStatus();
}

absl::Status CheckInterval(const char* field, uint32_t begin, uint32_t count, uint32_t limit) {
  if (count >= 1 && uint64_t{begin} + count <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "range.%s: [%d, %d + %d) is empty or outside [0, %d)", field, begin, begin, count, limit));
}

absl::Status CheckRequest(const BlockPool::ReserveRequest& request) {
  const BlockShape& shape = request.shape;
  SKETCHKV_RETURN_IF_ERROR(CheckShape(shape));
  const CellRange& range = request.range;
  SKETCHKV_RETURN_IF_ERROR(
      CheckInterval("layers", range.layer_begin, range.layer_count, shape.num_layers));
  SKETCHKV_RETURN_IF_ERROR(
      CheckInterval("heads", range.head_begin, range.head_count, shape.num_heads));
  if (request.num_tokens < 1 || request.num_tokens > shape.block_tokens) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "num_tokens: %d, must be 1 to block_tokens %d", request.num_tokens, shape.block_tokens));
  }
  if (request.key.hash.bytes().empty()) {
    return absl::InvalidArgumentError(absl::StrFormat("block_hash: 0 bytes, must be %d to %d",
                                                      BlockHash::kMinBytes, BlockHash::kMaxBytes));
  }
  if (request.parent == request.key.hash) {
    return absl::InvalidArgumentError(
        absl::StrFormat("parent_hash: block %s names itself", request.key.hash.ToHex()));
  }
  return absl::OkStatus();
}

std::string HexOrNone(const std::optional<BlockHash>& hash) {
  return hash.has_value() ? hash->ToHex() : "none";
}

size_t CellNumber(const Entry* entry, const WriteHandle::Cell& cell) {
  return size_t{cell.layer} * entry->cells->num_heads + cell.head;
}

std::vector<WriteHandle::Cell> CellsOf(const CellRange& range) {
  std::vector<WriteHandle::Cell> cells;
  cells.reserve(size_t{range.layer_count} * range.head_count);
  for (uint32_t layer = 0; layer < range.layer_count; ++layer) {
    for (uint32_t head = 0; head < range.head_count; ++head) {
      cells.push_back({range.layer_begin + layer, range.head_begin + head});
    }
  }
  return cells;
}

}  // namespace

absl::StatusOr<WriteHandle> PoolState::Reserve(const BlockPool::ReserveRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(CheckRequest(request));
  auto claim = std::make_unique<WriteHandle::Claim>();
  std::vector<WriteHandle::Cell> wanted = CellsOf(request.range);

  MutexLock lock(&mu);
  Entry* entry = table.FindBlock(request.key);
  if (entry == nullptr) {
    SKETCHKV_ASSIGN_OR_RETURN(entry, table.Create(request));
  } else {
    SKETCHKV_RETURN_IF_ERROR(CheckStored(request, entry));
    table.AddRef(entry);
    table.Touch(entry, table.NextTick());
  }
  if (UnsealedCells* const cells = table.FindUnsealed(entry)) {
    std::erase_if(wanted, [&](const WriteHandle::Cell& cell) {
      return cells->state[CellNumber(entry, cell)] == UnsealedCells::kPresent;
    });
    for (const auto& cell : wanted) cells->state[CellNumber(entry, cell)] = UnsealedCells::kWriting;
  } else {
    wanted.clear();
  }
  claim->pool = this;
  claim->entry = entry;
  claim->slot = table.Bytes(entry);
  claim->gpu_slot = table.copies().View(entry);
  claim->cells = std::move(wanted);
  return WriteHandle(std::move(claim));
}

absl::Status PoolState::CheckStored(const BlockPool::ReserveRequest& request, Entry* entry) {
  const std::string hash = request.key.hash.ToHex();
  const CellTable& cells = *entry->cells;
  const std::optional<BlockHash> parent = entry->parent_hash();
  if (request.parent != parent) {
    return absl::FailedPreconditionError(
        absl::StrFormat("parent_hash: block %s is stored with parent %s, not %s", hash,
                        HexOrNone(parent), HexOrNone(request.parent)));
  }
  if (request.num_tokens != cells.num_tokens) {
    return absl::FailedPreconditionError(
        absl::StrFormat("num_tokens: block %s is stored with %d tokens, not %d", hash,
                        cells.num_tokens, request.num_tokens));
  }
  const BlockShape& shape = request.shape;
  const size_t slot_bytes = table.Bytes(entry).size();
  if (shape.num_layers != cells.num_layers || shape.num_heads != cells.num_heads ||
      shape.block_tokens != cells.block_tokens || shape.slot_bytes != slot_bytes) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "shape: block %s is stored with %d layers, %d heads, %d block_tokens, %d slot_bytes, not "
        "%d, %d, %d, %d",
        hash, cells.num_layers, cells.num_heads, cells.block_tokens, slot_bytes, shape.num_layers,
        shape.num_heads, shape.block_tokens, shape.slot_bytes));
  }
  const UnsealedCells* const unsealed = table.FindUnsealed(entry);
  if (unsealed == nullptr) return absl::OkStatus();
  for (const WriteHandle::Cell& cell : CellsOf(request.range)) {
    if (unsealed->state[CellNumber(entry, cell)] != UnsealedCells::kWriting) continue;
    return absl::AbortedError(
        absl::StrFormat("block %s: layer %d, head %d is being written by another put: try again",
                        hash, cell.layer, cell.head));
  }
  return absl::OkStatus();
}

absl::StatusOr<WriteHandle::CommitResult> PoolState::Commit(WriteHandle::Claim* claim,
                                                            std::span<const uint32_t> checksums,
                                                            HostBytes host) {
  if (checksums.size() != claim->cells.size()) {
    return absl::InvalidArgumentError(absl::StrFormat("checksums: %d for %d claimed cells",
                                                      checksums.size(), claim->cells.size()));
  }
  Entry* const entry = claim->entry;
  if (host == HostBytes::kStale && claim->gpu_slot.empty()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "block %s has no slot on the GPU, so its host bytes cannot wait", entry->key.hash.ToHex()));
  }
  MutexLock lock(&mu);
  if (entry->hidden) {
    return absl::NotFoundError(
        absl::StrFormat("block %s was deleted while it was written", entry->key.hash.ToHex()));
  }
  if (claim->committed) {
    return absl::FailedPreconditionError(
        absl::StrFormat("block %s: the claim is committed already", entry->key.hash.ToHex()));
  }
  if (host == HostBytes::kStale && !entry->on_gpu) {
    return absl::UnavailableError(absl::StrFormat("block %s: the GPU was lost while it was written",
                                                  entry->key.hash.ToHex()));
  }
  claim->committed = true;
  if (claim->cells.empty()) return WriteHandle::CommitResult{.sealed = entry->sealed != 0};

  UnsealedCells* const cells = table.FindUnsealed(entry);
  for (size_t i = 0; i < checksums.size(); ++i) {
    const size_t number = CellNumber(entry, claim->cells[i]);
    entry->cells->checksums()[number] = checksums[i];
    cells->state[number] = UnsealedCells::kPresent;
  }
  cells->num_present += checksums.size();
  cells->last_part = clock->Now();
  if (host == HostBytes::kStale) table.copies().MarkStale(entry);
  table.Announce(entry);
  table.Touch(entry, table.NextTick());
  const bool sealed = cells->num_present == cells->state.size();
  if (sealed) table.Seal(entry);
  return WriteHandle::CommitResult{.sealed = sealed};
}

void PoolState::EndClaim(WriteHandle::Claim* claim) {
  MutexLock lock(&mu);
  UnsealedCells* const cells = table.FindUnsealed(claim->entry);
  if (cells != nullptr && !claim->committed) {
    for (const WriteHandle::Cell& cell : claim->cells) {
      cells->state[CellNumber(claim->entry, cell)] = UnsealedCells::kEmpty;
    }
  }
  table.DropRef(claim->entry);
}

WriteHandle::WriteHandle(std::unique_ptr<Claim> claim) : claim_(std::move(claim)) {}
WriteHandle::WriteHandle(WriteHandle&&) noexcept = default;

WriteHandle& WriteHandle::operator=(WriteHandle&& other) noexcept {
  std::swap(claim_, other.claim_);
  WriteHandle(std::move(other));  // ends what was ours now, not when `other` goes
  return *this;
}

WriteHandle::~WriteHandle() {
  if (claim_ != nullptr) claim_->pool->EndClaim(claim_.get());
}

std::span<std::byte> WriteHandle::slot() const { return claim_->slot; }
std::span<std::byte> WriteHandle::gpu_slot() const { return claim_->gpu_slot; }
std::span<const WriteHandle::Cell> WriteHandle::claimed() const { return claim_->cells; }

absl::StatusOr<WriteHandle::CommitResult> WriteHandle::Commit(std::span<const uint32_t> checksums,
                                                              HostBytes host) {
  return claim_->pool->Commit(claim_.get(), checksums, host);
}

}  // namespace sketchkv
