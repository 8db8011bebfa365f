#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sketchkv/client.h"
#include "tests/bench/contender.h"
#include "tests/bench/data.h"

namespace sketchkv::bench {

// A client of the server of option server, with a model of its own: Llama-3.1-8B's heads (8 kv
// heads, d = 128, bf16). Options layers (else 32), block (tokens), profile, transport (shm:
// payloads lie in memory shared with the server; else they travel over gRPC).
class SdkSession {
 public:
  // UNAVAILABLE when the server shares no memory for option transport.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<SdkSession>> Open(const Options& options);
  ~SdkSession();  // takes the model and its blocks away

  [[nodiscard]] Client& client() { return *client_; }
  [[nodiscard]] const ModelInfo& model() const { return model_; }
  // `count` numbers of the run's queries, over and over.
  [[nodiscard]] std::vector<float> Queries(size_t count) const;

  // `count` blocks under hashes never used before, each the child of the one before. They share a
  // few payloads.
  [[nodiscard]] std::vector<PutPart> NewChain(size_t count);
  [[nodiscard]] absl::Status PutAll(const std::vector<PutPart>& parts);
  // Puts a new chain of so many tokens, whole blocks, and returns a lease of it.
  [[nodiscard]] absl::StatusOr<uint64_t> PutSequence(uint64_t tokens);

 private:
  SdkSession() = default;
  absl::Status MakePayload(const Numbers& numbers, bool shared);

  std::unique_ptr<Client> client_;
  ModelInfo model_;
  std::vector<float> queries_;
  std::unique_ptr<Buffer> memory_;  // of payload_, unless it is shared
  SharedBuffer shared_;
  std::span<const std::byte> payload_;
  uint64_t next_hash_ = 1;
};

}  // namespace sketchkv::bench
