#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <span>

#include "service/pool/block.h"
#include "service/pool/slab_allocator.h"

namespace sketchkv {

// What a block with a slot carries per cell; the checksums stand behind the struct in one piece of
// memory. The checksums are written under the pool's mutex until the block is sealed, then never.
struct CellTable {
  uint16_t num_layers = 0;
  uint16_t num_heads = 0;
  uint16_t block_tokens = 0;
  uint16_t num_tokens = 0;

  struct Deleter {
    void operator()(CellTable* cells) const { ::operator delete(cells); }
  };
  using Ptr = std::unique_ptr<CellTable, Deleter>;
  static Ptr Make(const BlockShape& shape, uint32_t num_tokens) {
    const size_t num_cells = size_t{shape.num_layers} * shape.num_heads;
    void* const memory = ::operator new(sizeof(CellTable) + num_cells * sizeof(uint32_t));
    Ptr cells(new (memory) CellTable{
        static_cast<uint16_t>(shape.num_layers), static_cast<uint16_t>(shape.num_heads),
        static_cast<uint16_t>(shape.block_tokens), static_cast<uint16_t>(num_tokens)});
    new (cells->first_checksum()) uint32_t[num_cells]{};
    return cells;
  }

  [[nodiscard]] size_t num_cells() const { return size_t{num_layers} * num_heads; }
  [[nodiscard]] bool is_short() const { return num_tokens < block_tokens; }
  [[nodiscard]] std::span<uint32_t> checksums() { return {first_checksum(), num_cells()}; }

 private:
  uint32_t* first_checksum() { return reinterpret_cast<uint32_t*>(this + 1); }
};

// One block, or the ghost of one: a placeholder without slot that stands for a missing parent as
// long as it has a child. A ghost has no parent (nobody told it yet). Everything is guarded by the
// pool's mutex; key, slot and cells do not change while refs > 0, so that holders read them
// without it. Kept small on purpose: the README counts the bytes.
struct Entry {
  explicit Entry(const BlockKey& k) : key(k) {}

  const BlockKey key;
  Entry* parent = nullptr;
  Entry* first_child = nullptr;
  Entry* next_sibling = nullptr;
  Entry* prev_sibling = nullptr;
  uint64_t last_use = 0;  // a tick of Lru
  SlotId slot;
  CellTable::Ptr cells;         // null: a ghost
  uint32_t refs : 28 = 0;       // pins and handles
  uint32_t on_gpu : 1 = 0;      // has a second slot: these four are of GpuCopies
  uint32_t host_stale : 1 = 0;  // cells were written to that slot alone
  uint32_t child_on_gpu : 1 = 0;
  uint32_t copy_tracked : 1 = 0;
  uint32_t sealed_children : 26 = 0;
  uint32_t sealed : 1 = 0;     // all cells are there
  uint32_t found : 1 = 0;      // sealed, and so are all ancestors
  uint32_t hidden : 1 = 0;     // deleted: out of the index, alive until refs == 0
  uint32_t damaged : 1 = 0;    // hidden because it, or an ancestor, turned out wrong
  uint32_t announced : 1 = 0;  // kStored was appended
  uint32_t tracked : 1 = 0;    // in the Lru

  [[nodiscard]] bool is_ghost() const { return cells == nullptr; }
  [[nodiscard]] std::optional<BlockHash> parent_hash() const {
    return parent == nullptr ? std::nullopt : std::optional<BlockHash>(parent->key.hash);
  }
};
static_assert(sizeof(Entry) <= 120);

}  // namespace sketchkv
