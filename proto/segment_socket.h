#pragma once

#include <cstdint>

// What passes over the Unix socket (SOCK_SEQPACKET) that hands out shared memory: the client sends
// one SegmentAsk; the server answers with one SegmentGrant and, when its code is 0, the descriptor
// of a memfd in the same message (SCM_RIGHTS). The segment lives until the connection ends.
namespace sketchkv {

inline constexpr uint64_t kSegmentMagic = 0x31'6d'68'73'76'6b'73ull;  // "skvshm1"

struct SegmentAsk {
  uint64_t magic = kSegmentMagic;
  uint64_t bytes = 0;  // wanted; less may be granted
};

struct SegmentGrant {
  uint64_t magic = kSegmentMagic;
  uint64_t bytes = 0;       // of the segment
  uint8_t server[16] = {};  // GetStatsResponse.shm_server
  uint8_t token[16] = {};   // SegmentRef.token
  uint32_t code = 0;        // of google.rpc.Code
  char message[108] = {};   // why there is none; ends with 0
};
static_assert(sizeof(SegmentAsk) == 16 && sizeof(SegmentGrant) == 160);

}  // namespace sketchkv
