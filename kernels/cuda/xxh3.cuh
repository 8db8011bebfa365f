#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define SKETCHKV_HOST_DEVICE __host__ __device__
#else
#define SKETCHKV_HOST_DEVICE
#endif

// XXH3, 64 bits, with a seed, of whole lines of 64 bytes, as the lanes of a warp share it. Compiles
// for the host too, where tests play the lanes.
//
// Eight accumulators of 64 bits take a line of eight words at a time; sixteen lines are a section,
// whose sums may be added in any order, and after each section but the last the accumulators are
// scrambled. Lane l has accumulators 2p and 2p + 1, p = l mod 4, which need the same two words, and
// of a section lines l / 4 and l / 4 + 8.
namespace sketchkv::cuda {

constexpr uint32_t kXxh3LineBytes = 64;
constexpr uint32_t kXxh3SectionLines = 16;
constexpr uint32_t kXxh3LaneLines = 2;  // of a section
// What is shorter is hashed in another way.
constexpr uint32_t kXxh3LongBytes = 256;

// The algorithm's default secret, words little-endian.
struct Xxh3Secret {
  uint64_t words[24];
};
constexpr Xxh3Secret kXxh3Secret = {{
    0xBE4BA423396CFEB8ull, 0x1CAD21F72C81017Cull, 0xDB979083E96DD4DEull, 0x1F67B3B7A4A44072ull,
    0x78E5C0CC4EE679CBull, 0x2172FFCC7DD05A82ull, 0x8E2443F7744608B8ull, 0x4C263A81E69035E0ull,
    0xCB00C391BB52283Cull, 0xA32E531B8B65D088ull, 0x4EF90DA297486471ull, 0xD8ACDEA946EF1938ull,
    0x3F349CE33F76FAA8ull, 0x1D4F0BC7C7BBDCF9ull, 0x3159B4CD4BE0518Aull, 0x647378D9C97E9FC8ull,
    0xC3EBD33483ACC5EAull, 0xEB6313FAFFA081C5ull, 0x49DAF0B751DD0D17ull, 0x9E68D429265516D3ull,
    0xFCA1477D58BE162Bull, 0xCE31D07AD1B8F88Full, 0x280416958F3ACB45ull, 0x7E404BBBCAFBD7AFull,
}};

constexpr uint64_t kXxh3Prime32First = 0x9E3779B1ull;
constexpr uint64_t kXxh3Prime32Second = 0x85EBCA77ull;
constexpr uint64_t kXxh3Prime32Third = 0xC2B2AE3Dull;
constexpr uint64_t kXxh3Prime64First = 0x9E3779B185EBCA87ull;
constexpr uint64_t kXxh3Prime64Second = 0xC2B2AE3D27D4EB4Full;
constexpr uint64_t kXxh3Prime64Third = 0x165667B19E3779F9ull;
constexpr uint64_t kXxh3Prime64Fourth = 0x85EBCA77C2B2AE63ull;
constexpr uint64_t kXxh3Prime64Fifth = 0x27D4EB2F165667C5ull;

// Two words side by side, or what belongs to them.
struct Xxh3Pair {
  uint64_t a, b;
};

// Word i of the secret as the seed changes it.
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3Key(const Xxh3Secret& secret, uint32_t i, uint64_t seed) {
  return i % 2 == 0 ? secret.words[i] + seed : secret.words[i] - seed;
}
// The eight bytes that begin `bytes` (1 to 7) behind the first of `low`.
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3Across(uint64_t low, uint64_t high, uint32_t bytes) {
  return low >> 8 * bytes | high << (64 - 8 * bytes);
}
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3MultiplyFold(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3Avalanche(uint64_t x) {
  x = (x ^ x >> 37) * 0x165667919E3779F9ull;
  return x ^ x >> 32;
}

// What a lane needs of the secret, all for its own two accumulators.
struct Xxh3LaneKeys {
  Xxh3Pair lines[kXxh3LaneLines];
  Xxh3Pair last;  // of the very last line
  Xxh3Pair scramble;
  Xxh3Pair merge;
};
SKETCHKV_HOST_DEVICE inline Xxh3LaneKeys MakeXxh3LaneKeys(const Xxh3Secret& secret, uint64_t seed,
                                                          uint32_t lane) {
  const uint32_t first = lane % 4 * 2;
  const auto pair = [&](uint32_t word) {
    return Xxh3Pair{Xxh3Key(secret, word + first, seed), Xxh3Key(secret, word + first + 1, seed)};
  };
  const auto across = [&](uint32_t word, uint32_t bytes) {
    const Xxh3Pair low = pair(word);
    const uint64_t high = Xxh3Key(secret, word + first + 2, seed);
    return Xxh3Pair{Xxh3Across(low.a, low.b, bytes), Xxh3Across(low.b, high, bytes)};
  };
  return {{pair(lane / 4), pair(lane / 4 + 8)}, across(15, 1), pair(16), across(1, 3)};
}

SKETCHKV_HOST_DEVICE inline Xxh3Pair Xxh3Start(uint32_t lane) {
  switch (lane % 4) {
    case 0:
      return {kXxh3Prime32Third, kXxh3Prime64First};
    case 1:
      return {kXxh3Prime64Second, kXxh3Prime64Third};
    case 2:
      return {kXxh3Prime64Fourth, kXxh3Prime32Second};
    default:
      return {kXxh3Prime64Fifth, kXxh3Prime32First};
  }
}

// Adds two words to the sums of their accumulators.
SKETCHKV_HOST_DEVICE inline void Xxh3Add(Xxh3Pair words, Xxh3Pair keys, Xxh3Pair* sums) {
  const uint64_t a = words.a ^ keys.a, b = words.b ^ keys.b;
  sums->a += words.b + uint64_t{static_cast<uint32_t>(a)} * (a >> 32);
  sums->b += words.a + uint64_t{static_cast<uint32_t>(b)} * (b >> 32);
}

SKETCHKV_HOST_DEVICE inline Xxh3Pair Xxh3Scramble(Xxh3Pair sums, Xxh3Pair keys) {
  return {(sums.a ^ sums.a >> 47 ^ keys.a) * kXxh3Prime32First,
          (sums.b ^ sums.b >> 47 ^ keys.b) * kXxh3Prime32First};
}

// Of a lane's accumulators at the end; the hash is Xxh3Finish of the sum over four lanes.
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3Merge(Xxh3Pair sums, Xxh3Pair keys) {
  return Xxh3MultiplyFold(sums.a ^ keys.a, sums.b ^ keys.b);
}
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3Finish(uint64_t sum, uint64_t bytes) {
  return Xxh3Avalanche(sum + bytes * kXxh3Prime64First);
}

// The hash of 64, 128 or 192 bytes, which one lane makes alone.
SKETCHKV_HOST_DEVICE inline uint64_t Xxh3Short(const Xxh3Secret& secret, const uint64_t* words,
                                               uint32_t bytes, uint64_t seed) {
  // Words 2i and 2i + 1 with words j and j + 1 of the secret.
  const auto mix = [&](uint32_t i, uint32_t j) {
    return Xxh3MultiplyFold(words[2 * i] ^ Xxh3Key(secret, j, seed),
                            words[2 * i + 1] ^ Xxh3Key(secret, j + 1, seed));
  };
  // The same with the secret's bytes from word j on, `offset` bytes further.
  const auto mix_across = [&](uint32_t i, uint32_t j, uint32_t offset) {
    const uint64_t* const s = secret.words + j;
    return Xxh3MultiplyFold(words[2 * i] ^ (Xxh3Across(s[0], s[1], offset) + seed),
                            words[2 * i + 1] ^ (Xxh3Across(s[1], s[2], offset) - seed));
  };
  uint64_t sum = bytes * kXxh3Prime64First;
  const uint32_t pairs = bytes / 16;
  if (bytes <= 128) {
    // From both ends inwards.
    for (uint32_t i = 0; i < pairs / 2; ++i) sum += mix(i, 4 * i) + mix(pairs - 1 - i, 4 * i + 2);
    return Xxh3Avalanche(sum);
  }
  for (uint32_t i = 0; i < 8; ++i) sum += mix(i, 2 * i);
  sum = Xxh3Avalanche(sum);
  for (uint32_t i = 8; i < pairs; ++i) sum += mix_across(i, 2 * (i - 8), 3);
  sum += mix_across(pairs - 1, 14, 7);
  return Xxh3Avalanche(sum);
}

}  // namespace sketchkv::cuda
