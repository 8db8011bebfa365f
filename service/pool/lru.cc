#include "service/pool/lru.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "service/pool/entry.h"

namespace sketchkv {

void Lru::Track(size_t slot_bytes, Entry* entry) {
  classes_[slot_bytes].emplace(entry->last_use, entry);
}

void Lru::Untrack(size_t slot_bytes, Entry* entry) {
  const auto it = classes_.find(slot_bytes);
  it->second.erase({entry->last_use, entry});
  if (it->second.empty()) classes_.erase(it);
}

Entry* Lru::Coldest(size_t slot_bytes) const {
  const auto it = classes_.find(slot_bytes);
  return it == classes_.end() ? nullptr : it->second.begin()->second;
}

Entry* Lru::ColdestOfAll() const {
  const std::pair<uint64_t, Entry*>* coldest = nullptr;
  for (const auto& [slot_bytes, order] : classes_) {
    if (coldest == nullptr || *order.begin() < *coldest) coldest = &*order.begin();
  }
  return coldest == nullptr ? nullptr : coldest->second;
}

void Lru::VisitOthers(size_t slot_bytes, absl::FunctionRef<bool(Entry*)> visit) const {
  struct Cursor {
    Order::const_iterator at, end;
    bool operator>(const Cursor& other) const { return *at > *other.at; }
  };
  std::vector<Cursor> heap;
  for (const auto& [other_bytes, order] : classes_) {
    if (other_bytes != slot_bytes) heap.push_back({order.begin(), order.end()});
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    Cursor& cursor = heap.back();
    if (!visit(cursor.at->second)) return;
    if (++cursor.at == cursor.end) {
      heap.pop_back();
    } else {
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  }
}

}  // namespace sketchkv
