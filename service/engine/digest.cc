#include "service/engine/digest.h"

#include <openssl/evp.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"

namespace sketchkv {

Digest128 Sha256Digest128(std::span<const uint8_t> bytes) {
  std::array<uint8_t, EVP_MAX_MD_SIZE> whole{};
  unsigned int size = 0;
  EVP_Digest(bytes.data(), bytes.size(), whole.data(), &size, EVP_sha256(), nullptr);
  Digest128 digest;
  std::copy_n(whole.begin(), digest.size(), digest.begin());
  return digest;
}

std::string ToHex(const Digest128& digest) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

}  // namespace sketchkv
