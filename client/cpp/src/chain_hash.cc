#include <openssl/evp.h>

#include <array>
#include <cstdlib>
#include <memory>

#include "sketchkv/client.h"

namespace sketchkv {
inline namespace sdk {
namespace {

constexpr size_t kHashBytes = 32;

struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

// SHA-256 by OpenSSL's default provider fails only without memory or without any provider; neither
// leaves a hash to go on with.
void Check(bool ok) {
  if (!ok) std::abort();
}

// Length (64 bits, little-endian), then the bytes: no two lists of fields give the same stream.
void Update(EVP_MD_CTX* context, const void* data, size_t size) {
  std::array<unsigned char, 8> length{};
  for (size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<unsigned char>(static_cast<uint64_t>(size) >> (8 * i));
  }
  Check(EVP_DigestUpdate(context, length.data(), length.size()) == 1);
  if (size > 0) Check(EVP_DigestUpdate(context, data, size) == 1);
}

}  // namespace

BlockId ChainHash(const BlockId& parent_hash, std::span<const std::byte> payload,
                  const std::string& salt) {
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  Check(context != nullptr && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1);
  Update(context.get(), parent_hash.data(), parent_hash.size());
  Update(context.get(), salt.data(), salt.size());
  Update(context.get(), payload.data(), payload.size());
  BlockId hash(kHashBytes, '\0');
  unsigned int size = 0;
  Check(EVP_DigestFinal_ex(context.get(), reinterpret_cast<unsigned char*>(hash.data()), &size) ==
        1);
  return hash;
}

}  // namespace sdk
}  // namespace sketchkv
