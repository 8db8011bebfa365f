#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"

namespace sketchkv {

struct Entry;

// The blocks that may be evicted now, per size class in the order of their last use. Only leaves
// are in it, so a chain of thousands of blocks costs one node; a parent comes in with its own last
// use when its last sealed child goes. Ticks instead of time: no two uses are equal. O(log n), and
// O(classes) to compare classes. Not thread-safe.
class Lru {
 public:
  // A new, highest tick, for Entry::last_use.
  uint64_t NextTick() { return ++tick_; }
  [[nodiscard]] uint64_t last_tick() const { return tick_; }

  // Entry::last_use must not change between the two.
  void Track(size_t slot_bytes, Entry* entry);
  void Untrack(size_t slot_bytes, Entry* entry);

  // The least recently used; null when there is none.
  [[nodiscard]] Entry* Coldest(size_t slot_bytes) const;
  [[nodiscard]] Entry* ColdestOfAll() const;

  // Visits the entries of all other classes, coldest first, until `visit` says false.
  void VisitOthers(size_t slot_bytes, absl::FunctionRef<bool(Entry*)> visit) const;

 private:
  using Order = std::set<std::pair<uint64_t, Entry*>>;

  uint64_t tick_ = 0;
  absl::flat_hash_map<size_t, Order> classes_;  // by slot bytes, none empty
};

}  // namespace sketchkv
