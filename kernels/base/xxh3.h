#pragma once

#include <xxhash.h>
#if defined(__x86_64__)
// The same functions for the widest vectors of this CPU; those of xxhash.h are compiled for SSE2
// and take three times as long.
#include <xxh_x86dispatch.h>
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace sketchkv {

// XXH3, 64 bits, seed 0, of bytes that come in pieces: the same whatever the pieces are. The
// checksum of a payload. Who uses it links libxxhash.
class RunningXxh3 {
 public:
  RunningXxh3() : state_(XXH3_createState(), XXH3_freeState) { XXH3_64bits_reset(state_.get()); }

  void Add(std::span<const std::byte> bytes) {
    XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
  }
  // Of all that was added so far.
  [[nodiscard]] uint64_t Value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace sketchkv
