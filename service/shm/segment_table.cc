#include "service/shm/segment_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/checked_math.h"
#include "kernels/base/status_macros.h"

namespace sketchkv {
namespace {

constexpr uint64_t kPageBytes = 4096;

}  // namespace

absl::StatusOr<SegmentTable::Added> SegmentTable::Add(uint64_t bytes) {
  bytes = RoundUp(std::clamp<uint64_t>(bytes, 1, limits_.client_bytes), kPageBytes);
  {
    MutexLock lock(&budget_->mu);
    if (bytes > limits_.total_bytes - std::min(budget_->used, limits_.total_bytes)) {
      return absl::ResourceExhaustedError(absl::StrCat("a segment of ", bytes,
                                                       " bytes: ", budget_->used, " of ",
                                                       limits_.total_bytes, " are in use"));
    }
    budget_->used += bytes;
  }
  const std::shared_ptr<void> counted(nullptr, [budget = budget_, bytes](void*) {
    MutexLock lock(&budget->mu);
    budget->used -= bytes;
  });
  SKETCHKV_ASSIGN_OR_RETURN(const SegmentToken token, NewSegmentToken());
  SKETCHKV_ASSIGN_OR_RETURN(std::shared_ptr<Segment> made, Segment::Create(bytes));
  Segment* const raw = made.get();
  std::shared_ptr<Segment> segment(raw, [made = std::move(made), counted](Segment*) mutable {
    made = nullptr;  // before its bytes stop counting
  });
  MutexLock lock(&mu_);
  segments_[token] = segment;
  return Added{token, std::move(segment)};
}

void SegmentTable::Remove(const SegmentToken& token, bool client_is_gone) {
  std::shared_ptr<Segment> removed;  // goes after the lock
  MutexLock lock(&mu_);
  const auto it = segments_.find(token);
  if (it == segments_.end()) return;
  removed = std::move(it->second);
  if (client_is_gone) removed->DiscardAtEnd();
  segments_.erase(it);
}

absl::StatusOr<std::shared_ptr<Segment>> SegmentTable::Find(absl::string_view token) const {
  SegmentToken key{};
  if (token.size() != key.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("segment.token has ", token.size(), " bytes; it needs ", key.size()));
  }
  std::memcpy(key.data(), token.data(), key.size());
  MutexLock lock(&mu_);
  const auto it = segments_.find(key);
  if (it == segments_.end()) {
    return absl::UnavailableError("there is no segment of this token (any more)");
  }
  return it->second;
}

uint64_t SegmentTable::used_bytes() const {
  MutexLock lock(&budget_->mu);
  return budget_->used;
}

}  // namespace sketchkv
