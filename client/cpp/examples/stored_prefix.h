#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/examples/past_kv.h"
#include "sketchkv/client.h"

// What an engine does with sketchkv, in the order it does it: hash the blocks of a prompt, put
// their keys and values, find them again in another process, and use them decoded or where they
// lie.
namespace sketchkv::example {

// The layout to register tiny-lm's cache with: bf16, as its keys and values are held.
[[nodiscard]] CacheLayout MakeLayout(const KvShape& shape, uint32_t block_tokens);

// One hash for every full block of `tokens`; each covers the whole prefix up to its block's end.
[[nodiscard]] std::vector<BlockId> HashChain(std::span<const uint8_t> tokens, uint32_t block_tokens,
                                             const std::string& salt);

// Puts the blocks `chain` names, the first chain.size() * layout.block_tokens tokens of `kv`, as
// one part a layer and block, layer after layer, as a prefill produces them. The first error of a
// part.
[[nodiscard]] absl::Status PutPrefix(Client* client, const ModelInfo& model,
                                     std::span<const BlockId> chain, const LocalKv& kv);

// The longest stored prefix of a chain, pinned by a lease until this object goes (or, when the
// server grants none, merely found). `client` outlives it. Not thread-safe.
class StoredPrefix {
 public:
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<StoredPrefix>> Find(
      Client* client, const ModelInfo& model, std::vector<BlockId> chain);
  ~StoredPrefix();  // releases the lease

  [[nodiscard]] uint32_t num_tokens() const { return found_.num_tokens; }
  // Fetches all blocks decoded to bf16 and appends them to `kv`, which is empty.
  [[nodiscard]] absl::Status Fetch(LocalKv* kv) const;
  // Names the stored tokens in a query.
  void SetTarget(AttentionItem* item) const;
  // Renews the lease when half its time is over. To be called now and then by a long decode loop.
  [[nodiscard]] absl::Status KeepAlive();
  // Releases the lease now, reporting an error, as the destructor cannot.
  [[nodiscard]] absl::Status Release();

  [[nodiscard]] Client* client() const { return client_; }
  [[nodiscard]] const ModelInfo& model() const { return model_; }

 private:
  using Clock = std::chrono::steady_clock;

  StoredPrefix(Client* client, const ModelInfo& model) : client_(client), model_(model) {}

  Client* const client_;
  const ModelInfo model_;
  std::vector<BlockId> chain_;  // of the blocks found
  LookupResult found_;
  Clock::time_point renew_at_;
};

// The past attended remotely: queries travel, keys and values stay where they lie, compressed.
class RemotePast final : public PastKv {
 public:
  // `prefix` outlives this object.
  RemotePast(const KvShape& shape, StoredPrefix* prefix)
      : shape_(shape), prefix_(prefix), session_(prefix->client()->NewAttendSession()) {}

  [[nodiscard]] uint32_t num_tokens() const override { return prefix_->num_tokens(); }
  [[nodiscard]] absl::Status Attend(uint32_t layer, std::span<const float> queries,
                                    std::span<float> out, std::span<float> lse) override;

 private:
  const KvShape shape_;
  StoredPrefix* const prefix_;
  std::unique_ptr<Client::AttendSession> session_;
};

}  // namespace sketchkv::example
