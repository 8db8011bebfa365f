#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sketchkv/client.h"

namespace sketchkv::cli {

[[nodiscard]] std::string ToHex(const BlockId& block);
// INVALID_ARGUMENT for text that is not 16 to 32 bytes in hexadecimal.
[[nodiscard]] absl::StatusOr<BlockId> FromHex(const std::string& text);

// Token ids of a file: an integer array (npy, safetensors), or any other file, each byte a token.
// INVALID_ARGUMENT for ids outside [0, 2^32).
[[nodiscard]] absl::StatusOr<std::vector<uint32_t>> ReadTokens(const std::string& path);

// What `sketchkv put` and all commands that read hash: the block's token ids as 32-bit
// little-endian integers; `salt` with the root.
[[nodiscard]] BlockId TokenBlockHash(const BlockId& parent, std::span<const uint32_t> tokens,
                                     const std::string& salt);

// How the commands that read name blocks: exactly one of --chain, --tokens, --block.
struct ChainOptions {
  std::string chain_file;  // hashes in hexadecimal, one a line, as put --chain-out writes
  std::string token_file;
  std::string salt;
  std::vector<std::string> blocks;  // hashes in hexadecimal

  void AddTo(CLI::App* command);
  // The hashes from the first block on. `block_tokens` cuts the tokens.
  [[nodiscard]] absl::StatusOr<std::vector<BlockId>> Resolve(uint32_t block_tokens) const;
};

}  // namespace sketchkv::cli
