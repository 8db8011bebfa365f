#include "tests/bench/sdk_session.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::bench {
namespace {

constexpr uint32_t kHeads = 8;
constexpr uint64_t kSharedBytes = uint64_t{128} << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<SdkSession>> SdkSession::Open(const Options& options) {
  static std::atomic<int> next_model{0};
  SKETCHKV_ASSIGN_OR_RETURN(const Numbers numbers, ReadNumbers(options));
  std::unique_ptr<SdkSession> session(new SdkSession);
  const bool shared = options.Text("transport", "grpc") == "shm";
  SKETCHKV_ASSIGN_OR_RETURN(session->client_,
                            Client::Create({.target = options.Text("server", ""),
                                            .timeout = std::chrono::minutes(1),
                                            .shared_memory_bytes = shared ? kSharedBytes : 0}));
  SKETCHKV_RETURN_IF_ERROR(session->client_->WaitUntilServing(std::chrono::seconds(30)));
  const CacheLayout layout = {.num_layers = static_cast<uint32_t>(options.Number("layers", 32)),
                              .num_kv_heads = kHeads,
                              .head_dim = kDim,
                              .value_dim = kDim,
                              .block_tokens = static_cast<uint32_t>(options.Number("block", 16))};
  SKETCHKV_ASSIGN_OR_RETURN(
      session->model_,
      session->client_->RegisterModel(absl::StrCat("bench-", getpid(), "-", next_model++), layout,
                                      {{.name = options.Text("profile", "qjl3p")}}));
  SKETCHKV_RETURN_IF_ERROR(session->MakePayload(numbers, shared));
  session->queries_ = numbers.queries;
  return session;
}

std::vector<float> SdkSession::Queries(size_t count) const {
  std::vector<float> queries(count);
  for (size_t i = 0; i < count; ++i) queries[i] = queries_[i % queries_.size()];
  return queries;
}

absl::Status SdkSession::MakePayload(const Numbers& numbers, bool shared) {
  // Keys and values are alike: rows of random numbers.
  const size_t bytes = model_.raw_block_bytes;
  memory_ = std::make_unique<Buffer>(Bf16Rows(numbers.keys, bytes / (kDim * sizeof(uint16_t))));
  payload_ = {memory_->data(), bytes};
  if (!shared) return absl::OkStatus();
  if (client_->transport() != Transport::kSharedMemory) {
    return absl::UnavailableError("the server shares no memory with this process");
  }
  SKETCHKV_ASSIGN_OR_RETURN(shared_, client_->AllocateShared(bytes));
  std::memcpy(shared_.bytes().data(), memory_->data(), bytes);
  payload_ = shared_.bytes();
  return absl::OkStatus();
}

SdkSession::~SdkSession() {
  if (!model_.name.empty()) client_->UnregisterModel(model_.name).IgnoreError();
}

std::vector<PutPart> SdkSession::NewChain(size_t count) {
  std::vector<PutPart> parts(count);
  for (size_t i = 0; i < count; ++i) {
    PutPart& part = parts[i];
    part.model = model_.name;
    part.block_hash = absl::StrFormat("%032d", next_hash_++);
    if (i > 0) part.parent_hash = parts[i - 1].block_hash;
    part.num_tokens = model_.layout.block_tokens;
    part.payload = payload_;
  }
  return parts;
}

absl::Status SdkSession::PutAll(const std::vector<PutPart>& parts) {
  for (const absl::StatusOr<PutResult>& result : client_->PutAll(parts)) {
    SKETCHKV_RETURN_IF_ERROR(result.status());
    if (!result->sealed) return absl::InternalError("a whole block that was put is not sealed");
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SdkSession::PutSequence(uint64_t tokens) {
  const std::vector<PutPart> parts = NewChain(tokens / model_.layout.block_tokens);
  SKETCHKV_RETURN_IF_ERROR(PutAll(parts));
  std::vector<BlockId> chain;
  for (const PutPart& part : parts) chain.push_back(part.block_hash);
  SKETCHKV_ASSIGN_OR_RETURN(const LookupResult found,
                            client_->Lookup(model_.name, chain, std::chrono::minutes(10)));
  if (found.num_tokens != tokens || found.lease_id == 0) {
    return absl::InternalError(
        absl::StrCat("a lease over ", found.num_tokens, " tokens, want one over ", tokens));
  }
  return found.lease_id;
}

}  // namespace sketchkv::bench
