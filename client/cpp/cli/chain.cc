#include "client/cpp/cli/chain.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/cli/array_file.h"
#include "client/cpp/cli/command.h"
#include "client/cpp/files/mapped_file.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

absl::StatusOr<std::vector<BlockId>> ReadChain(const std::string& path) {
  const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return FileError(file.status());
  const absl::string_view text(reinterpret_cast<const char*>(file->bytes().data()),
                               file->bytes().size());
  std::vector<BlockId> chain;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty()) continue;
    SKETCHKV_ASSIGN_OR_RETURN(BlockId block, FromHex(std::string(line)));
    chain.push_back(std::move(block));
  }
  return chain;
}

}  // namespace

std::string ToHex(const BlockId& block) { return absl::BytesToHexString(block); }

absl::StatusOr<BlockId> FromHex(const std::string& text) {
  const bool hex = std::all_of(text.begin(), text.end(), absl::ascii_isxdigit);
  if (!hex || text.size() % 2 != 0 || text.size() < 32 || text.size() > 64) {
    return UsageError(absl::StrCat("block hash \"", text.substr(0, 80), "\" of ", text.size(),
                                   " characters, want 32 to 64 hexadecimal digits"));
  }
  return absl::HexStringToBytes(text);
}

absl::StatusOr<std::vector<uint32_t>> ReadTokens(const std::string& path) {
  if (!HasExtension(path, ".npy") && path.find(".safetensors") == std::string::npos) {
    const absl::StatusOr<MappedFile> file = MappedFile::Open(path);
    if (!file.ok()) return FileError(file.status());
    std::vector<uint32_t> tokens;
    for (const std::byte byte : file->bytes()) tokens.push_back(std::to_integer<uint32_t>(byte));
    return tokens;
  }
  SKETCHKV_ASSIGN_OR_RETURN(const InputArray array, OpenArray(path, "tokens"));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<int64_t> ids, ReadIntegers(array.tensor));
  std::vector<uint32_t> tokens;
  for (const int64_t id : ids) {
    if (id < 0 || id > INT64_C(0xFFFFFFFF)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": token ", tokens.size(), " is ", id, ", want 0 to 4294967295"));
    }
    tokens.push_back(static_cast<uint32_t>(id));
  }
  return tokens;
}

BlockId TokenBlockHash(const BlockId& parent, std::span<const uint32_t> tokens,
                       const std::string& salt) {
  return ChainHash(parent, std::as_bytes(tokens), parent.empty() ? salt : "");
}

void ChainOptions::AddTo(CLI::App* command) {
  auto* group = command->add_option_group("blocks", "Which blocks (exactly one)");
  group->add_option("--chain", chain_file, "File of block hashes in hexadecimal, one a line");
  group->add_option("--tokens", token_file,
                    "File of token ids: npy or safetensors integers, else one byte a token");
  group->add_option("--block", blocks, "Block hash in hexadecimal; may be repeated");
  group->require_option(1);
  command->add_option("--salt", salt, "With --tokens: the salt of the root's hash");
}

absl::StatusOr<std::vector<BlockId>> ChainOptions::Resolve(uint32_t block_tokens) const {
  std::vector<BlockId> chain;
  if (!chain_file.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(chain, ReadChain(chain_file));
  } else if (!token_file.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, ReadTokens(token_file));
    const std::span<const uint32_t> all(tokens);
    for (size_t begin = 0; begin < all.size(); begin += block_tokens) {
      const size_t count = std::min<size_t>(block_tokens, all.size() - begin);
      chain.push_back(TokenBlockHash(chain.empty() ? BlockId() : chain.back(),
                                     all.subspan(begin, count), salt));
    }
  } else {
    for (const std::string& text : blocks) {
      SKETCHKV_ASSIGN_OR_RETURN(BlockId block, FromHex(text));
      chain.push_back(std::move(block));
    }
  }
  if (chain.empty()) return UsageError("no block is named");
  return chain;
}

}  // namespace sketchkv::cli
