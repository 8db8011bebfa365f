#pragma once

#include <cstddef>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "service/pool/block.h"
#include "service/pool/entry.h"
#include "service/pool/entry_arena.h"

namespace sketchkv {

// Keys and family links of all blocks, and what is found. Owns its entries, and those
// removed from it until they are deleted. Nothing recurses: a chain may be 100,000 blocks long. Not
// thread-safe.
class BlockIndex {
 public:
  BlockIndex() = default;
  ~BlockIndex();
  BlockIndex(const BlockIndex&) = delete;
  BlockIndex& operator=(const BlockIndex&) = delete;

  // Block or ghost; null when there is neither.
  [[nodiscard]] Entry* Find(const BlockKey& key) const;
  Entry* FindOrAddGhost(const BlockKey& key);
  // Takes the entry out; it lives on until Delete. It has no parent and no child.
  void Remove(Entry* entry);
  void Delete(Entry* entry);

  // `child` has no parent yet, and is no ancestor of `parent`.
  static void Link(Entry* child, Entry* parent);
  static void Unlink(Entry* child);  // a root stays as it is

  // Marks a block sealed and returns the blocks that are found from now on, parents first.
  static std::vector<Entry*> MarkSealed(Entry* entry);

  // True when `ancestor` is `entry` or above it, below the first found block: a found block is no
  // descendant of one that is missing.
  [[nodiscard]] static bool IsUnfoundAncestor(const Entry* ancestor, const Entry* entry);
  // `top` and all its descendants, parents first.
  [[nodiscard]] static std::vector<Entry*> Subtree(Entry* top);
  // Blocks without parent, and children of ghosts, of this model. Looks at every key.
  [[nodiscard]] std::vector<Entry*> Tops(uint32_t tenant, const Fingerprint& fingerprint) const;

 private:
  struct KeyHash {
    using is_transparent = void;
    size_t operator()(const BlockKey& key) const { return absl::Hash<BlockKey>()(key); }
    size_t operator()(const Entry* entry) const { return (*this)(entry->key); }
  };
  struct KeyEq {
    using is_transparent = void;
    bool operator()(const Entry* a, const Entry* b) const { return a->key == b->key; }
    bool operator()(const Entry* a, const BlockKey& b) const { return a->key == b; }
    bool operator()(const BlockKey& a, const Entry* b) const { return a == b->key; }
  };

  EntryArena arena_;
  absl::flat_hash_set<Entry*, KeyHash, KeyEq> entries_;
};

}  // namespace sketchkv
