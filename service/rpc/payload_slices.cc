#include "service/rpc/payload_slices.h"

#include <utility>

namespace sketchkv {
namespace {

// What a slice keeps alive.
struct Kept {
  std::shared_ptr<const void> owner;
  std::shared_ptr<void> hold;
};

}  // namespace

Payload PayloadOf(std::vector<grpc::Slice> slices) {
  // Small slices hold their bytes in themselves: they must stay where they are.
  const auto kept = std::make_shared<const std::vector<grpc::Slice>>(std::move(slices));
  Payload payload;
  for (const grpc::Slice& slice : *kept) {
    payload.Append({reinterpret_cast<const std::byte*>(slice.begin()), slice.size()}, kept);
  }
  return payload;
}

std::vector<grpc::Slice> SlicesOf(const Payload& payload, const std::shared_ptr<void>& hold) {
  std::vector<grpc::Slice> slices;
  for (const Payload::Fragment& fragment : payload.fragments()) {
    slices.emplace_back(
        const_cast<std::byte*>(fragment.bytes.data()), fragment.bytes.size(),
        [](void* kept) { delete static_cast<Kept*>(kept); }, new Kept{fragment.owner, hold});
  }
  return slices;
}

}  // namespace sketchkv
