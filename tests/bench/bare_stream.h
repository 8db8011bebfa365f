#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

// What the bare gRPC server and its client agree on. An item is a header, `up` bytes from the
// client (some of them with the header, the rest in messages of their own), then `down` bytes back,
// or one byte where there are none. Nothing looks at the bytes.
namespace sketchkv::bench {

inline constexpr char kBareStreamMethod[] = "/sketchkv.bench.Bare/Stream";
// As large as the service's own messages.
inline constexpr size_t kBareMessageBytes = (size_t{4} << 20) - (size_t{64} << 10);

struct BareHeader {
  uint64_t up = 0;
  uint64_t down = 0;
};

}  // namespace sketchkv::bench
