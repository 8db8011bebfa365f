#include "service/engine/payload.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace sketchkv {
namespace {

// Cells lie at multiples of this.
struct alignas(64) Line {
  std::byte bytes[64];
};

}  // namespace

std::shared_ptr<std::byte> NewBytes(uint64_t size) {
  auto* lines = new Line[size / sizeof(Line) + 1];
  return {lines->bytes, [lines](std::byte*) { delete[] lines; }};
}

void Payload::Append(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) {
  if (!bytes.empty()) fragments_.push_back({size(), bytes, std::move(owner)});
}

void Payload::Append(const Payload& more) {
  for (const Fragment& fragment : more.fragments_) Append(fragment.bytes, fragment.owner);
}

const Payload::Fragment* Payload::At(uint64_t offset) const {
  const auto after = std::upper_bound(
      fragments_.begin(), fragments_.end(), offset,
      [](uint64_t value, const Fragment& fragment) { return value < fragment.begin; });
  return &*(after - 1);
}

Payload Payload::Sub(uint64_t begin, uint64_t end) const {
  Payload sub;
  if (begin == end) return sub;
  for (const Fragment* from = At(begin); begin < end; ++from) {
    const uint64_t stop = std::min(end, from->end());
    sub.Append(from->bytes.subspan(begin - from->begin, stop - begin), from->owner);
    begin = stop;
  }
  return sub;
}

void Payload::Copy(const Fragment** fragment, uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    if (offset == (*fragment)->end()) ++*fragment;
    const Fragment& from = **fragment;
    const size_t bytes = std::min<uint64_t>(out.size(), from.end() - offset);
    std::memcpy(out.data(), from.bytes.data() + (offset - from.begin), bytes);
    out = out.subspan(bytes);
    offset += bytes;
  }
}

void Payload::CopyTo(uint64_t offset, std::span<std::byte> out) const {
  if (out.empty()) return;
  const Fragment* fragment = At(offset);
  Copy(&fragment, offset, out);
}

RowsView Payload::Rows(uint64_t offset, uint64_t stride_bytes, uint64_t row_bytes, uint64_t count,
                       std::byte* scratch) const {
  const Fragment* fragment = At(offset);
  if (offset + (count - 1) * stride_bytes + row_bytes <= fragment->end()) {
    return {.data = fragment->bytes.data() + (offset - fragment->begin),
            .stride_bytes = stride_bytes};
  }
  for (uint64_t row = 0; row < count; ++row) {
    const uint64_t from = offset + row * stride_bytes;
    while (fragment->end() <= from) ++fragment;
    Copy(&fragment, from, {scratch + row * row_bytes, row_bytes});
  }
  return {.data = scratch, .stride_bytes = row_bytes};
}

std::string Payload::ToString() const {
  std::string text;
  text.reserve(size());
  for (const Fragment& fragment : fragments_) {
    text.append(reinterpret_cast<const char*>(fragment.bytes.data()), fragment.bytes.size());
  }
  return text;
}

}  // namespace sketchkv
