#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/tables.h"
#include "service/engine/digest.h"

namespace sketchkv {

// Tables and their digest.
struct StoredTables {
  Digest128 digest{};
  std::shared_ptr<const ModelTables> tables;  // null: none
};

// The tables that models may be registered with, by tenant and digest. Models share them, so that
// what is dropped here stays valid for who holds it. Thread-safe.
class TableStore {
 public:
  struct Limits {
    uint64_t max_upload_bytes = uint64_t{256} << 20;  // of one set of tables; <= max_unused_bytes
    uint64_t max_unused_bytes = uint64_t{256} << 20;  // of those no model uses, together
  };

  TableStore() : TableStore(Limits()) {}
  explicit TableStore(const Limits& limits) : limits_(limits) {}

  // RESOURCE_EXHAUSTED naming both numbers for an upload of more than max_upload_bytes.
  [[nodiscard]] absl::Status CheckFits(uint64_t bytes) const;

  // Checks the tables and keeps them, or what is there of the same digest. `heads`: [layers]
  // [kv_heads]. Errors as ModelTables::Create and CheckFits.
  [[nodiscard]] absl::StatusOr<StoredTables> Add(uint32_t tenant, const KvLayout& layout,
                                                 std::vector<HeadTable> heads);
  // FAILED_PRECONDITION when none of this digest are here.
  [[nodiscard]] absl::StatusOr<StoredTables> Find(uint32_t tenant, const Digest128& digest);

  // Drops the least recently used tables that no model uses, down to max_unused_bytes. Add does so
  // too; tables also fall out of use when their last model goes.
  void Trim();

  struct Stats {
    size_t count = 0;
    uint64_t size_bytes = 0;
  };
  [[nodiscard]] Stats GetStats() const;

 private:
  using Key = std::pair<uint32_t, Digest128>;
  struct Entry {
    StoredTables stored;
    uint64_t size_bytes = 0;
    uint64_t last_use = 0;
  };
  void TrimLocked() SKETCHKV_REQUIRES(mu_);

  const Limits limits_;  // constant after construction

  mutable Mutex mu_;
  std::map<Key, Entry> entries_ SKETCHKV_GUARDED_BY(mu_);
  uint64_t uses_ SKETCHKV_GUARDED_BY(mu_) = 0;
};

}  // namespace sketchkv
