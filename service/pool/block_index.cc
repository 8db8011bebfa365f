#include "service/pool/block_index.h"

namespace sketchkv {

BlockIndex::~BlockIndex() {
  for (Entry* entry : entries_) arena_.Delete(entry);
}

Entry* BlockIndex::Find(const BlockKey& key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : *it;
}

Entry* BlockIndex::FindOrAddGhost(const BlockKey& key) {
  if (Entry* const entry = Find(key)) return entry;
  return *entries_.insert(arena_.New(key)).first;
}

void BlockIndex::Remove(Entry* entry) { entries_.erase(entry); }

void BlockIndex::Delete(Entry* entry) { arena_.Delete(entry); }

void BlockIndex::Link(Entry* child, Entry* parent) {
  child->parent = parent;
  child->prev_sibling = nullptr;
  child->next_sibling = parent->first_child;
  if (parent->first_child != nullptr) parent->first_child->prev_sibling = child;
  parent->first_child = child;
}

void BlockIndex::Unlink(Entry* child) {
  Entry* const parent = child->parent;
  if (parent == nullptr) return;
  if (child->prev_sibling != nullptr) {
    child->prev_sibling->next_sibling = child->next_sibling;
  } else {
    parent->first_child = child->next_sibling;
  }
  if (child->next_sibling != nullptr) child->next_sibling->prev_sibling = child->prev_sibling;
  child->parent = child->prev_sibling = child->next_sibling = nullptr;
  if (child->sealed) --parent->sealed_children;
}

std::vector<Entry*> BlockIndex::MarkSealed(Entry* entry) {
  entry->sealed = 1;
  if (entry->parent != nullptr) {
    ++entry->parent->sealed_children;
    if (!entry->parent->found) return {};
  }
  std::vector<Entry*> found = {entry};
  for (size_t i = 0; i < found.size(); ++i) {
    found[i]->found = 1;
    for (Entry* child = found[i]->first_child; child != nullptr; child = child->next_sibling) {
      if (child->sealed) found.push_back(child);
    }
  }
  return found;
}

bool BlockIndex::IsUnfoundAncestor(const Entry* ancestor, const Entry* entry) {
  while (entry != nullptr && !entry->found) {
    if (entry == ancestor) return true;
    entry = entry->parent;
  }
  return false;
}

std::vector<Entry*> BlockIndex::Subtree(Entry* top) {
  std::vector<Entry*> subtree = {top};
  for (size_t i = 0; i < subtree.size(); ++i) {
    for (Entry* child = subtree[i]->first_child; child != nullptr; child = child->next_sibling) {
      subtree.push_back(child);
    }
  }
  return subtree;
}

std::vector<Entry*> BlockIndex::Tops(uint32_t tenant, const Fingerprint& fingerprint) const {
  std::vector<Entry*> tops;
  for (Entry* entry : entries_) {
    if (entry->key.tenant != tenant || entry->key.fingerprint != fingerprint) continue;
    if (entry->is_ghost()) continue;
    if (entry->parent == nullptr || entry->parent->is_ghost()) tops.push_back(entry);
  }
  return tops;
}

}  // namespace sketchkv
