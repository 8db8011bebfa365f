#include "service/engine/table_store.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {

absl::Status TableStore::CheckFits(uint64_t bytes) const {
  if (bytes <= limits_.max_upload_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the tables have at least ", bytes, " bytes, of at most ", limits_.max_upload_bytes));
}

absl::StatusOr<StoredTables> TableStore::Add(uint32_t tenant, const KvLayout& layout,
                                             std::vector<HeadTable> heads) {
  SKETCHKV_ASSIGN_OR_RETURN(ModelTables tables, ModelTables::Create(layout, std::move(heads)));
  const uint64_t size_bytes = tables.size_bytes();
  SKETCHKV_RETURN_IF_ERROR(CheckFits(size_bytes));
  Entry made{.stored = {.digest = Sha256Digest128(tables.Serialize())}, .size_bytes = size_bytes};
  made.stored.tables = std::make_shared<const ModelTables>(std::move(tables));

  MutexLock lock(&mu_);
  Entry& entry = entries_[{tenant, made.stored.digest}];
  if (entry.stored.tables == nullptr) entry = std::move(made);
  entry.last_use = ++uses_;
  TrimLocked();  // never this entry: it is the last used, and fits alone
  return entry.stored;
}

absl::StatusOr<StoredTables> TableStore::Find(uint32_t tenant, const Digest128& digest) {
  MutexLock lock(&mu_);
  const auto it = entries_.find({tenant, digest});
  if (it == entries_.end()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "tables_digest is ", ToHex(digest), "; no such tables are here: upload them first"));
  }
  it->second.last_use = ++uses_;
  return it->second.stored;
}

void TableStore::Trim() {
  MutexLock lock(&mu_);
  TrimLocked();
}

void TableStore::TrimLocked() {
  // Nobody else holds what this map alone refers to; whoever would must take the lock first.
  std::vector<std::map<Key, Entry>::iterator> unused;
  uint64_t unused_bytes = 0;
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->second.stored.tables.use_count() > 1) continue;
    unused.push_back(it);
    unused_bytes += it->second.size_bytes;
  }
  std::sort(unused.begin(), unused.end(),
            [](const auto& a, const auto& b) { return a->second.last_use < b->second.last_use; });
  for (const auto& it : unused) {
    if (unused_bytes <= limits_.max_unused_bytes) return;
    unused_bytes -= it->second.size_bytes;
    entries_.erase(it);
  }
}

TableStore::Stats TableStore::GetStats() const {
  MutexLock lock(&mu_);
  Stats stats{.count = entries_.size()};
  for (const auto& [key, entry] : entries_) stats.size_bytes += entry.size_bytes;
  return stats;
}

}  // namespace sketchkv
