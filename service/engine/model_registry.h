#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/codec.h"
#include "service/engine/digest.h"
#include "service/engine/table_store.h"
#include "service/pool/block.h"

namespace sketchkv {

// A profile asked for, and the layers it is for. layer_count 0: all from layer_begin on.
struct LayerProfileRequest {
  ProfileRequest profile;
  uint32_t layer_begin = 0;
  uint32_t layer_count = 0;
};

// A registered model. Immutable.
struct Model {
  std::string name;
  uint32_t tenant = 0;
  std::unique_ptr<const BlockCodec> codec;
  Fingerprint fingerprint{};
  std::optional<Digest128> tables_digest;  // of codec->tables(); none when no profile uses tables
  BlockShape shape;

  [[nodiscard]] const KvLayout& layout() const { return codec->layout(); }
  // Bytes of one full block in the layout's dtypes.
  [[nodiscard]] uint64_t raw_block_bytes() const;
};

// The models of all tenants, and the tables they may be registered with. Thread-safe; a Model stays
// valid while somebody holds it.
class ModelRegistry {
 public:
  static constexpr size_t kMaxModels = 4096;
  // Of a model's dense projections together.
  static constexpr uint64_t kMaxProjectionBytes = uint64_t{64} << 20;

  explicit ModelRegistry(Isa isa, const TableStore::Limits& limits = {})
      : isa_(isa), tables_(limits) {}

  [[nodiscard]] TableStore& tables() { return tables_; }

  // Idempotent. INVALID_ARGUMENT names the field; FAILED_PRECONDITION: no tables of this digest;
  // ALREADY_EXISTS names the first field in which the registered model of this name differs;
  // RESOURCE_EXHAUSTED: kMaxModels. Tables that no profile uses are not kept with the model.
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const Model>> Register(
      uint32_t tenant, const std::string& name, const KvLayout& layout,
      const std::vector<LayerProfileRequest>& profiles,
      const std::optional<Digest128>& tables_digest = std::nullopt);
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const Model>> Get(uint32_t tenant,
                                                                 const std::string& name) const;
  // Null when no such model is registered.
  [[nodiscard]] std::shared_ptr<const Model> Find(uint32_t tenant,
                                                  const Fingerprint& fingerprint) const;
  [[nodiscard]] std::vector<std::shared_ptr<const Model>> List(uint32_t tenant) const;
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const Model>> Remove(uint32_t tenant,
                                                                    const std::string& name);
  [[nodiscard]] size_t size() const;

 private:
  // The model of this name if it has this fingerprint, null if there is none, else ALREADY_EXISTS.
  struct Candidate;
  [[nodiscard]] absl::StatusOr<std::shared_ptr<const Model>> FindSame(
      const Candidate& candidate) const SKETCHKV_REQUIRES(mu_);

  const Isa isa_;      // constant after construction
  TableStore tables_;  // has its own synchronization

  mutable Mutex mu_;
  std::map<std::pair<uint32_t, std::string>, std::shared_ptr<const Model>> models_
      SKETCHKV_GUARDED_BY(mu_);
};

}  // namespace sketchkv
