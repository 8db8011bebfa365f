#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/src/core.h"
#include "kernels/base/mutex.h"
#include "kernels/codec.h"
#include "sketchkv/types.h"
#include "sketchkv/v1/models.pb.h"

namespace sketchkv::client {

// A model as the server answered. Thread-safe.
class CachedModel {
 public:
  [[nodiscard]] static absl::StatusOr<std::shared_ptr<const CachedModel>> Create(v1::Model message);

  [[nodiscard]] const ModelInfo& info() const { return info_; }
  [[nodiscard]] const CacheLayout& layout() const { return info_.layout; }
  [[nodiscard]] uint32_t format_version() const { return message_.format_version(); }
  [[nodiscard]] const v1::Model& message() const { return message_; }
  // Made at the first call that succeeds, the model's tables fetched for it; lives as long as this
  // object. Errors as CodecOf and FetchTables.
  [[nodiscard]] absl::StatusOr<const BlockCodec*> codec(ClientCore* core, TimePoint deadline) const;

 private:
  CachedModel(v1::Model message, ModelInfo info)
      : message_(std::move(message)), info_(std::move(info)) {}

  const v1::Model message_;
  const ModelInfo info_;
  mutable Mutex mu_;
  mutable std::unique_ptr<const BlockCodec> codec_ SKETCHKV_GUARDED_BY(mu_);
};

// Models by name, asked for once. Thread-safe.
class ModelCache {
 public:
  explicit ModelCache(ClientCore* core) : core_(core) {}

  // From memory, else GetModel.
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const CachedModel>> Get(const std::string& name,
                                                                       TimePoint deadline);
  // GetModel.
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const CachedModel>> Fetch(const std::string& name,
                                                                         TimePoint deadline);
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const CachedModel>> Insert(v1::Model message);
  void Drop(const std::string& name);
  // After an answer that may mean another model stands under the name by now; INTERNAL among them:
  // an answer of another size or layout than the model's.
  void DropAfter(const absl::Status& status, const std::string& name);

  // Gets the model and runs `use`. When `use` fails over a remembered model, asks the server
  // whether it still stands, and runs `use` again over a new one.
  [[nodiscard]] absl::Status With(
      const std::string& name, TimePoint deadline,
      const std::function<absl::Status(const std::shared_ptr<const CachedModel>&)>& use);

 private:
  [[nodiscard]] std::shared_ptr<const CachedModel> Find(const std::string& name);

  ClientCore* const core_;
  Mutex mu_;
  std::map<std::string, std::shared_ptr<const CachedModel>> models_ SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv::client
