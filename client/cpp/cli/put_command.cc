#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/array_file.h"
#include "client/cpp/cli/chain.h"
#include "client/cpp/cli/command.h"
#include "client/cpp/cli/element.h"
#include "client/cpp/cli/progress_bar.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

// Payloads on their way in one call: bounds memory, long enough to keep the stream busy.
constexpr uint64_t kBatchBytes = 64 << 20;

struct PutOptions {
  std::string model, keys, values, tokens, salt, parent, chain_out;
  bool encode_locally = false;
  bool full_blocks_only = false;
};

// Keys and values [layers, tokens, kv_heads, dim] checked against a model, cut into blocks.
class Sequence {
 public:
  static absl::StatusOr<Sequence> Open(const PutOptions& options, const CacheLayout& layout) {
    Sequence sequence(layout);
    SKETCHKV_ASSIGN_OR_RETURN(sequence.keys_, OpenArray(options.keys, "keys"));
    SKETCHKV_RETURN_IF_ERROR(sequence.CheckShape("keys", sequence.keys_.tensor, layout.head_dim));
    sequence.num_tokens_ = sequence.keys_.tensor.shape[1];
    if (layout.values_are_key_prefix != options.values.empty()) {
      return UsageError(layout.values_are_key_prefix
                            ? "the model's values are the keys' prefix: give no --values"
                            : "--values is missing");
    }
    if (!options.values.empty()) {
      SKETCHKV_ASSIGN_OR_RETURN(sequence.values_, OpenArray(options.values, "values"));
      SKETCHKV_RETURN_IF_ERROR(
          sequence.CheckShape("values", sequence.values_.tensor, layout.value_dim));
      const uint64_t value_tokens = sequence.values_.tensor.shape[1];
      if (value_tokens != sequence.num_tokens_) {
        return absl::InvalidArgumentError(
            absl::StrCat("values have ", value_tokens, " tokens, keys ", sequence.num_tokens_));
      }
    }
    if (!options.tokens.empty()) {
      SKETCHKV_ASSIGN_OR_RETURN(sequence.tokens_, ReadTokens(options.tokens));
      if (sequence.tokens_.size() != sequence.num_tokens_) {
        return absl::InvalidArgumentError(absl::StrCat("tokens file has ", sequence.tokens_.size(),
                                                       " tokens, keys ", sequence.num_tokens_));
      }
    }
    return sequence;
  }

  [[nodiscard]] uint64_t num_tokens() const { return num_tokens_; }

  // Raw payload of tokens [begin, begin + count), order NHD.
  absl::StatusOr<std::vector<std::byte>> Payload(uint64_t begin, uint32_t count) const {
    std::vector<std::byte> payload;
    const auto append = [&](const NamedTensor& tensor, uint32_t layer, uint32_t dim,
                            ElementType type, float scale) {
      const uint64_t token = uint64_t{layout_.num_kv_heads} * dim;
      return AppendAs(tensor, (layer * num_tokens_ + begin) * token, count * token, type, scale,
                      &payload);
    };
    for (uint32_t layer = 0; layer < layout_.num_layers; ++layer) {
      SKETCHKV_RETURN_IF_ERROR(
          append(keys_.tensor, layer, layout_.head_dim, layout_.key_type, layout_.key_scale));
      if (layout_.values_are_key_prefix) continue;
      SKETCHKV_RETURN_IF_ERROR(append(values_.tensor, layer, layout_.value_dim, layout_.value_type,
                                      layout_.value_scale));
    }
    return payload;
  }

  // Over the tokens where they are given, else over the payload.
  [[nodiscard]] BlockId Hash(const BlockId& parent, uint64_t begin, uint32_t count,
                             std::span<const std::byte> payload, const std::string& salt) const {
    if (tokens_.empty()) return ChainHash(parent, payload, parent.empty() ? salt : "");
    return TokenBlockHash(parent, std::span(tokens_).subspan(begin, count), salt);
  }

 private:
  explicit Sequence(const CacheLayout& layout) : layout_(layout) {}

  absl::Status CheckShape(absl::string_view what, const NamedTensor& tensor, uint32_t dim) const {
    if (tensor.shape.size() == 4 && tensor.shape[0] == layout_.num_layers &&
        tensor.shape[2] == layout_.num_kv_heads && tensor.shape[3] == dim && tensor.shape[1] > 0) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat(what, " have shape ", ShapeString(tensor.shape), ", the model wants [",
                     layout_.num_layers, ", tokens, ", layout_.num_kv_heads, ", ", dim, "]"));
  }

  CacheLayout layout_;
  InputArray keys_, values_;
  std::vector<uint32_t> tokens_;
  uint64_t num_tokens_ = 0;
};

absl::Status WriteChain(const std::string& path, const std::vector<BlockId>& chain) {
  std::ofstream out(path);
  for (const BlockId& block : chain) out << ToHex(block) << '\n';
  out.flush();
  return out ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write ", path));
}

// Puts block after block and gathers what became of them.
class Putter {
 public:
  Putter(Client* client, const PutOptions& options, const ModelInfo& model,
         const Sequence& sequence, BlockId parent)
      : client_(*client),
        options_(options),
        model_(model),
        sequence_(sequence),
        parent_(std::move(parent)) {}

  absl::Status Run() {
    const uint32_t block_tokens = model_.layout.block_tokens;
    uint64_t end = sequence_.num_tokens();
    if (options_.full_blocks_only) end -= end % block_tokens;
    ProgressBar bar("put", end);
    uint64_t batch_bytes = 0;
    for (uint64_t begin = 0; begin < end; begin += block_tokens) {
      const auto count = static_cast<uint32_t>(std::min<uint64_t>(block_tokens, end - begin));
      SKETCHKV_ASSIGN_OR_RETURN(std::vector<std::byte> payload, sequence_.Payload(begin, count));
      PutPart part;
      part.model = model_.name;
      part.parent_hash = parent_;
      part.block_hash = sequence_.Hash(parent_, begin, count, payload, options_.salt);
      part.num_tokens = count;
      parent_ = part.block_hash;
      chain_.push_back(part.block_hash);
      batch_bytes += payload.size();
      payloads_.push_back(std::move(payload));
      parts_.push_back(std::move(part));
      if (batch_bytes < kBatchBytes && begin + block_tokens < end) continue;
      SKETCHKV_RETURN_IF_ERROR(SendBatch());
      batch_bytes = 0;
      bar.Update(begin + count);
    }
    return absl::OkStatus();
  }

  [[nodiscard]] const std::vector<BlockId>& chain() const { return chain_; }
  [[nodiscard]] const nlohmann::ordered_json& blocks() const { return blocks_; }
  [[nodiscard]] uint64_t raw_bytes() const { return raw_bytes_; }
  [[nodiscard]] uint64_t num_present() const { return num_present_; }

 private:
  absl::Status SendBatch() {
    for (size_t i = 0; i < parts_.size(); ++i) parts_[i].payload = payloads_[i];
    const std::vector<absl::StatusOr<PutResult>> results = client_.PutAll(parts_);
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (!results[i].ok()) {
        return absl::Status(
            results[i].status().code(),
            absl::StrCat("block ", blocks_.size(), ": ", results[i].status().message()));
      }
      raw_bytes_ += payloads_[i].size();
      num_present_ += results[i]->already_present;
      blocks_.push_back({{"hash", ToHex(parts_[i].block_hash)},
                         {"num_tokens", parts_[i].num_tokens},
                         {"already_present", results[i]->already_present},
                         {"sealed", results[i]->sealed}});
    }
    parts_.clear();
    payloads_.clear();
    return absl::OkStatus();
  }

  Client& client_;
  const PutOptions& options_;
  const ModelInfo& model_;
  const Sequence& sequence_;
  BlockId parent_;
  std::vector<PutPart> parts_;
  std::vector<std::vector<std::byte>> payloads_;
  std::vector<BlockId> chain_;
  nlohmann::ordered_json blocks_ = nlohmann::ordered_json::array();
  uint64_t raw_bytes_ = 0, num_present_ = 0;
};

absl::StatusOr<CommandOutput> RunPut(const PutOptions& options, const CommandRunner& runner) {
  BlockId parent;
  if (!options.parent.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(parent, FromHex(options.parent));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client,
                            runner.Connect(options.encode_locally));
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model, client->GetModel(options.model));
  SKETCHKV_ASSIGN_OR_RETURN(const Sequence sequence, Sequence::Open(options, model.layout));
  Putter putter(client.get(), options, model, sequence, parent);
  SKETCHKV_RETURN_IF_ERROR(putter.Run());
  if (putter.chain().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        sequence.num_tokens(), " tokens fill no block of ", model.layout.block_tokens));
  }
  if (!options.chain_out.empty()) {
    SKETCHKV_RETURN_IF_ERROR(WriteChain(options.chain_out, putter.chain()));
  }
  CommandOutput output;
  const std::string tip = ToHex(putter.chain().back());
  output.json = {{"model", model.name},
                 {"tip", tip},
                 {"raw_bytes", putter.raw_bytes()},
                 {"slot_bytes", model.slot_bytes},
                 {"blocks", putter.blocks()}};
  output.text =
      absl::StrFormat("%d blocks, %d of them there before, %d raw bytes\ntip %s\n",
                      putter.chain().size(), putter.num_present(), putter.raw_bytes(), tip);
  return output;
}

}  // namespace

void AddPutCommand(CLI::App& app, CommandRunner* runner) {
  auto options = std::make_shared<PutOptions>();
  CLI::App* command = app.add_subcommand(
      "put",
      "Put a sequence's keys and values, cut into blocks under chained hashes.\n"
      "Arrays are [layers, tokens, kv_heads, dim] in float32, float16 or bfloat16, npy or\n"
      "safetensors (FILE.safetensors:NAME; NAME defaults to keys and values); they are converted "
      "to\n"
      "the model's dtypes. A last, shorter block is put too.");
  command->add_option("--model", options->model, "Registered model")->required();
  command->add_option("--keys", options->keys, "Array of keys")->required();
  command->add_option("--values", options->values, "Array of values");
  command->add_option("--tokens", options->tokens,
                      "Token ids to hash (npy or safetensors integers, else one byte a token); "
                      "without it a block's hash is over its bytes");
  command->add_option("--salt", options->salt, "Keeps weights, adapters and tenants apart");
  command->add_option("--parent", options->parent,
                      "Hash of the block before the first, hexadecimal");
  command->add_option("--chain-out", options->chain_out, "Write the hashes here, one a line");
  command->add_flag("--encode-locally", options->encode_locally,
                    "Encode here: only compressed bytes travel");
  command->add_flag("--full-blocks-only", options->full_blocks_only,
                    "Leave out a last, shorter block");
  command->callback([options, runner] { runner->Run([&] { return RunPut(*options, *runner); }); });
}

}  // namespace sketchkv::cli
