#include "client/cpp/examples/stored_prefix.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::example {
namespace {

constexpr std::chrono::milliseconds kLeaseTtl{60000};

}  // namespace

CacheLayout MakeLayout(const KvShape& shape, uint32_t block_tokens) {
  CacheLayout layout;
  layout.num_layers = shape.num_layers;
  layout.num_kv_heads = shape.kv_heads;
  layout.head_dim = shape.head_dim;
  layout.value_dim = shape.head_dim;
  layout.block_tokens = block_tokens;
  return layout;
}

std::vector<BlockId> HashChain(std::span<const uint8_t> tokens, uint32_t block_tokens,
                               const std::string& salt) {
  std::vector<BlockId> chain;
  BlockId parent;
  for (size_t begin = 0; begin + block_tokens <= tokens.size(); begin += block_tokens) {
    const auto block = std::as_bytes(tokens.subspan(begin, block_tokens));
    parent = chain.emplace_back(ChainHash(parent, block, parent.empty() ? salt : ""));
  }
  return chain;
}

absl::Status PutPrefix(Client* client, const ModelInfo& model, std::span<const BlockId> chain,
                       const LocalKv& kv) {
  const uint32_t block_tokens = model.layout.block_tokens;
  std::vector<std::vector<std::byte>> payloads;
  std::vector<PutPart> parts;
  for (uint32_t layer = 0; layer < model.layout.num_layers; ++layer) {
    for (size_t block = 0; block < chain.size(); ++block) {
      payloads.push_back(
          kv.ExportBf16(layer, static_cast<uint32_t>(block) * block_tokens, block_tokens));
      PutPart& part = parts.emplace_back();
      part.model = model.name;
      part.block_hash = chain[block];
      if (block > 0) part.parent_hash = chain[block - 1];
      part.num_tokens = block_tokens;
      part.range = {.layer_begin = layer, .layer_count = 1};
      part.payload = payloads.back();
    }
  }
  for (const absl::StatusOr<PutResult>& result : client->PutAll(parts)) {
    SKETCHKV_RETURN_IF_ERROR(result.status());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<StoredPrefix>> StoredPrefix::Find(Client* client,
                                                                 const ModelInfo& model,
                                                                 std::vector<BlockId> chain) {
  std::unique_ptr<StoredPrefix> prefix(new StoredPrefix(client, model));
  SKETCHKV_ASSIGN_OR_RETURN(prefix->found_, client->Lookup(model.name, chain, kLeaseTtl));
  if (prefix->found_.num_blocks > chain.size()) {
    return absl::InternalError(absl::StrCat("num_blocks: ", prefix->found_.num_blocks,
                                            " found of a chain of ", chain.size()));
  }
  chain.resize(prefix->found_.num_blocks);
  prefix->chain_ = std::move(chain);
  prefix->renew_at_ = Clock::now() + std::chrono::milliseconds(prefix->found_.lease_ttl_ms) / 2;
  return prefix;
}

StoredPrefix::~StoredPrefix() { Release().IgnoreError(); }

absl::Status StoredPrefix::Release() {
  const uint64_t lease = std::exchange(found_.lease_id, 0);
  return lease == 0 ? absl::OkStatus() : client_->ReleaseLease(lease);
}

absl::Status StoredPrefix::KeepAlive() {
  if (found_.lease_id == 0 || Clock::now() < renew_at_) return absl::OkStatus();
  SKETCHKV_ASSIGN_OR_RETURN(const std::chrono::milliseconds granted,
                            client_->RenewLease(found_.lease_id, kLeaseTtl));
  renew_at_ = Clock::now() + granted / 2;
  return absl::OkStatus();
}

void StoredPrefix::SetTarget(AttentionItem* item) const {
  if (found_.lease_id != 0) {
    item->lease_id = found_.lease_id;
  } else {
    item->tip = chain_.back();
  }
}

absl::Status StoredPrefix::Fetch(LocalKv* kv) const {
  std::vector<GetPart> parts(chain_.size());
  for (size_t block = 0; block < chain_.size(); ++block) {
    parts[block].model = model_.name;
    parts[block].block_hash = chain_[block];
  }
  for (absl::StatusOr<GetResult>& result : client_->GetAll(parts)) {
    SKETCHKV_RETURN_IF_ERROR(result.status());
    const std::span<const std::byte> payload(result->payload);
    const size_t layer_bytes = payload.size() / model_.layout.num_layers;
    for (uint32_t layer = 0; layer < model_.layout.num_layers; ++layer) {
      kv->AppendBf16(layer, payload.subspan(layer * layer_bytes, layer_bytes));
    }
  }
  if (kv->num_tokens() != found_.num_tokens) {
    return absl::InternalError(absl::StrCat("num_tokens: ", kv->num_tokens(), " fetched of ",
                                            found_.num_tokens, " found"));
  }
  return absl::OkStatus();
}

absl::Status RemotePast::Attend(uint32_t layer, std::span<const float> queries,
                                std::span<float> out, std::span<float> lse) {
  SKETCHKV_RETURN_IF_ERROR(prefix_->KeepAlive());
  AttentionCall call;
  call.model = prefix_->model().name;
  call.queries_per_kv_head = shape_.query_heads / shape_.kv_heads;
  call.queries = queries;
  AttentionItem& item = call.items.emplace_back();
  prefix_->SetTarget(&item);
  item.layer = layer;
  item.num_query_tokens =
      static_cast<uint32_t>(queries.size() / (size_t{shape_.query_heads} * shape_.head_dim));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<AttentionOutput> outputs, session_->Attend(call));
  if (outputs.size() != 1 || outputs[0].out.size() != out.size() ||
      outputs[0].lse.size() != lse.size()) {
    return absl::InternalError("an answer of another size than the queries");
  }
  std::copy(outputs[0].out.begin(), outputs[0].out.end(), out.begin());
  std::copy(outputs[0].lse.begin(), outputs[0].lse.end(), lse.begin());
  return absl::OkStatus();
}

}  // namespace sketchkv::example
