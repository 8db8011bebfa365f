#include "tests/bench/sdk_contenders.h"

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/sdk_session.h"

namespace sketchkv::bench {
namespace {

class SdkPut final : public Contender {
 public:
  SdkPut(const Options& options, std::unique_ptr<SdkSession> session)
      : session_(std::move(session)), items_(options.Number("items", 1)) {}
  static absl::Status Open() { return absl::OkStatus(); }

  absl::StatusOr<Repetition> Run() override {
    SKETCHKV_RETURN_IF_ERROR(session_->client().Clear(session_->model().name).status());
    const std::vector<PutPart> parts = session_->NewChain(items_);
    const double begin = Now();
    SKETCHKV_RETURN_IF_ERROR(session_->PutAll(parts));
    return Repetition{Now() - begin,
                      static_cast<double>(items_ * session_->model().raw_block_bytes)};
  }

 private:
  const std::unique_ptr<SdkSession> session_;
  const uint64_t items_;
};

class SdkGet final : public Contender {
 public:
  SdkGet(const Options& options, std::unique_ptr<SdkSession> session)
      : session_(std::move(session)),
        items_(options.Number("items", 1)),
        encoded_(options.Text("format", "bf16") == "encoded") {}

  absl::Status Open() {
    const std::vector<PutPart> parts = session_->NewChain(items_);
    memory_ = std::make_unique<Buffer>(parts.size() * PayloadBytes());
    for (const PutPart& part : parts) {
      GetPart get;
      get.model = part.model;
      get.block_hash = part.block_hash;
      if (encoded_) get.type.reset();
      get.into = {memory_->data() + gets_.size() * PayloadBytes(), PayloadBytes()};
      gets_.push_back(std::move(get));
    }
    return session_->PutAll(parts);
  }

  absl::StatusOr<Repetition> Run() override {
    const double begin = Now();
    const auto results = session_->client().GetAll(gets_);
    const double end = Now();
    for (const absl::StatusOr<GetResult>& result : results) {
      SKETCHKV_RETURN_IF_ERROR(result.status());
      if (result->payload_bytes != PayloadBytes()) {
        return absl::InternalError(
            absl::StrCat("a block of ", result->payload_bytes, " bytes, want ", PayloadBytes()));
      }
    }
    return Repetition{end - begin, static_cast<double>(items_ * session_->model().raw_block_bytes)};
  }

 private:
  [[nodiscard]] uint64_t PayloadBytes() const {
    return encoded_ ? session_->model().slot_bytes : session_->model().raw_block_bytes;
  }

  const std::unique_ptr<SdkSession> session_;
  const uint64_t items_;
  const bool encoded_;
  std::unique_ptr<Buffer> memory_;  // where gets_ go
  std::vector<GetPart> gets_;
};

class SdkAttend final : public Contender {
 public:
  SdkAttend(const Options& options, std::unique_ptr<SdkSession> session)
      : session_(std::move(session)),
        tokens_(options.Number("tokens", 1024)),
        sequences_(options.Number("sequences", 1)),
        transport_(options.Text("transport", "grpc") == "shm" ? Transport::kSharedMemory
                                                              : Transport::kGrpc),
        pauses_(options) {}

  absl::Status Open() {
    call_.model = session_->model().name;
    call_.queries_per_kv_head = 4;
    call_.items.resize(sequences_);
    for (AttentionItem& item : call_.items) {
      SKETCHKV_ASSIGN_OR_RETURN(item.lease_id, session_->PutSequence(tokens_));
    }
    queries_ = session_->Queries(sequences_ * 32 * kDim);
    call_.queries = queries_;
    return transport_ == Transport::kSharedMemory ? ShareQueries() : absl::OkStatus();
  }

  absl::StatusOr<Repetition> Run() override {
    pauses_.Next();
    const double begin = Now();
    const auto outputs = session_->client().Attend(call_);
    const double end = Now();
    SKETCHKV_RETURN_IF_ERROR(outputs.status());
    if (outputs->front().transport != transport_) {
      return absl::InternalError("queries and outputs took another way than they were to take");
    }
    return Repetition{end - begin, 1};
  }

 private:
  absl::Status ShareQueries() {
    const auto bytes = std::as_bytes(call_.queries);
    SKETCHKV_ASSIGN_OR_RETURN(shared_, session_->client().AllocateShared(bytes.size()));
    std::memcpy(shared_.bytes().data(), bytes.data(), bytes.size());
    call_.queries = {reinterpret_cast<const float*>(shared_.bytes().data()), queries_.size()};
    return absl::OkStatus();
  }
  const std::unique_ptr<SdkSession> session_;
  const uint64_t tokens_;
  const uint64_t sequences_;
  const Transport transport_;
  Pauses pauses_;
  std::vector<float> queries_;
  SharedBuffer shared_;  // where they are copied for transport shm
  AttentionCall call_;
};

class SdkBlocks final : public Contender {
 public:
  SdkBlocks(const Options& options, std::unique_ptr<SdkSession> session)
      : slot_bytes_(static_cast<double>(session->model().slot_bytes)) {}
  static absl::Status Open() { return absl::OkStatus(); }
  absl::StatusOr<Repetition> Run() override { return Repetition{0, 1}; }
  [[nodiscard]] double bytes_per_unit() const override { return slot_bytes_; }

 private:
  const double slot_bytes_;
};

template <typename T>
Made Make(const Options& options) {
  SKETCHKV_ASSIGN_OR_RETURN(auto session, SdkSession::Open(options));
  auto contender = std::make_unique<T>(options, std::move(session));
  SKETCHKV_RETURN_IF_ERROR(contender->Open());
  return contender;
}

}  // namespace

void AddSdkContenders(Registry* registry) {
  registry->Add("sdk.put", Make<SdkPut>);
  registry->Add("sdk.get", Make<SdkGet>);
  registry->Add("sdk.attend", Make<SdkAttend>);
  registry->Add("sdk.blocks", Make<SdkBlocks>);
}

}  // namespace sketchkv::bench
