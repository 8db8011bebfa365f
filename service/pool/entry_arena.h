#pragma once

#include <sanitizer/asan_interface.h>

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "service/pool/entry.h"

namespace sketchkv {

// Memory for entries, without malloc's bytes around each. Freed ones are used again; the memory
// goes back when the arena does. Entries must not outlive it. Not thread-safe.
class EntryArena {
 public:
  EntryArena() = default;
  ~EntryArena() {
    for (const auto& chunk : chunks_) {
      ASAN_UNPOISON_MEMORY_REGION(chunk.get(), kChunkEntries * sizeof(Place));
    }
  }
  EntryArena(const EntryArena&) = delete;
  EntryArena& operator=(const EntryArena&) = delete;

  [[nodiscard]] Entry* New(const BlockKey& key) {
    if (free_ == nullptr) AddChunk();
    Place* const place = free_;
    free_ = place->next;
    ASAN_UNPOISON_MEMORY_REGION(place, sizeof(Place));
    return new (place->bytes) Entry(key);
  }

  void Delete(Entry* entry) {
    entry->~Entry();
    auto* const place = reinterpret_cast<Place*>(entry);
    place->next = free_;
    free_ = place;
    // AddressSanitizer still sees who reads an entry that is gone.
    ASAN_POISON_MEMORY_REGION(place->bytes + sizeof(place->next),
                              sizeof(Place) - sizeof(place->next));
  }

 private:
  static constexpr size_t kChunkEntries = 512;

  union Place {
    Place* next;
    alignas(Entry) std::byte bytes[sizeof(Entry)];
  };

  void AddChunk() {
    chunks_.push_back(std::make_unique_for_overwrite<Place[]>(kChunkEntries));
    for (size_t i = kChunkEntries; i-- > 0;) {
      chunks_.back()[i].next = free_;
      free_ = &chunks_.back()[i];
    }
  }

  std::vector<std::unique_ptr<Place[]>> chunks_;
  Place* free_ = nullptr;
};

}  // namespace sketchkv
