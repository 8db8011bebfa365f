#include "client/cpp/src/model_cache.h"

#include <utility>

#include "client/cpp/src/convert.h"
#include "client/cpp/src/tables.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::client {

absl::StatusOr<std::shared_ptr<const CachedModel>> CachedModel::Create(v1::Model message) {
  SKETCHKV_ASSIGN_OR_RETURN(ModelInfo info, FromProto(message));
  return std::shared_ptr<const CachedModel>(new CachedModel(std::move(message), std::move(info)));
}

absl::StatusOr<const BlockCodec*> CachedModel::codec(ClientCore* core, TimePoint deadline) const {
  {
    MutexLock lock(&mu_);
    if (codec_ != nullptr) return codec_.get();
  }
  // Not under the lock: two first calls at once both fetch.
  std::shared_ptr<const ModelTables> tables;
  if (!message_.tables_digest().empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(tables, FetchTables(core, message_, deadline));
  }
  SKETCHKV_ASSIGN_OR_RETURN(std::unique_ptr<BlockCodec> made, CodecOf(message_, std::move(tables)));
  MutexLock lock(&mu_);
  if (codec_ == nullptr) codec_ = std::move(made);
  return codec_.get();
}

std::shared_ptr<const CachedModel> ModelCache::Find(const std::string& name) {
  MutexLock lock(&mu_);
  const auto it = models_.find(name);
  return it == models_.end() ? nullptr : it->second;
}

absl::StatusOr<std::shared_ptr<const CachedModel>> ModelCache::Get(const std::string& name,
                                                                   TimePoint deadline) {
  if (auto found = Find(name)) return found;
  return Fetch(name, deadline);
}

absl::StatusOr<std::shared_ptr<const CachedModel>> ModelCache::Fetch(const std::string& name,
                                                                     TimePoint deadline) {
  v1::GetModelRequest request;
  request.set_name(name);
  v1::Model model;
  const absl::Status status = WithRetries(core_, deadline, [&](grpc::ClientContext* context) {
    return FromCall(core_->models().GetModel(context, request, &model), *context);
  });
  if (!status.ok()) {
    DropAfter(status, name);
    return status;
  }
  return Insert(std::move(model));
}

absl::StatusOr<std::shared_ptr<const CachedModel>> ModelCache::Insert(v1::Model message) {
  SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<const CachedModel> model,
                            CachedModel::Create(std::move(message)));
  MutexLock lock(&mu_);
  std::shared_ptr<const CachedModel>& entry = models_[model->info().name];
  // The same model again: keep the codec that was made for it.
  if (entry == nullptr || entry->info().fingerprint != model->info().fingerprint) entry = model;
  return entry;
}

void ModelCache::Drop(const std::string& name) {
  MutexLock lock(&mu_);
  models_.erase(name);
}

void ModelCache::DropAfter(const absl::Status& status, const std::string& name) {
  if (absl::IsNotFound(status) || absl::IsInvalidArgument(status) ||
      absl::IsFailedPrecondition(status) || absl::IsInternal(status)) {
    Drop(name);
  }
}

absl::Status ModelCache::With(
    const std::string& name, TimePoint deadline,
    const std::function<absl::Status(const std::shared_ptr<const CachedModel>&)>& use) {
  const std::shared_ptr<const CachedModel> remembered = Find(name);
  if (remembered == nullptr) {
    SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const CachedModel> model,
                              Fetch(name, deadline));
    return use(model);
  }
  const absl::Status status = use(remembered);
  if (status.ok()) return status;
  SKETCHKV_ASSIGN_OR_RETURN(const std::shared_ptr<const CachedModel> model, Fetch(name, deadline));
  if (model->info().fingerprint == remembered->info().fingerprint) return status;
  return use(model);
}

}  // namespace sketchkv::client
