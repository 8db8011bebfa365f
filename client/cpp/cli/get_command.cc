#include <cstring>

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

constexpr uint64_t kBatchBytes = 64 << 20;

struct GetOptions {
  std::string model, keys_out, values_out;
  std::string dtype = "fp32";
  ChainOptions chain;
};

// Raw payloads of blocks, joined along the tokens.
class Joined {
 public:
  Joined(const CacheLayout& layout, ElementType type) : layout_(layout), type_(type) {}

  void Add(GetResult block) {
    num_tokens_ += block.num_tokens;
    blocks_.push_back(std::move(block));
  }
  [[nodiscard]] uint64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] uint64_t row_bytes(uint32_t dim) const {
    return uint64_t{layout_.num_kv_heads} * dim * ElementBytes(type_);
  }
  [[nodiscard]] uint32_t value_dim() const {
    return layout_.values_are_key_prefix ? 0 : layout_.value_dim;
  }

  // [layers, tokens, kv_heads, dim] of keys or values.
  [[nodiscard]] std::vector<std::byte> Array(bool values) const {
    const uint64_t key_row = row_bytes(layout_.head_dim);
    const uint64_t value_row = row_bytes(value_dim());
    const uint64_t row = values ? value_row : key_row;
    std::vector<std::byte> out(layout_.num_layers * num_tokens_ * row);
    std::byte* to = out.data();
    for (uint64_t layer = 0; layer < layout_.num_layers; ++layer) {
      for (const GetResult& block : blocks_) {
        const std::byte* from = block.payload.data() +
                                layer * block.num_tokens * (key_row + value_row) +
                                (values ? block.num_tokens * key_row : 0);
        std::memcpy(to, from, block.num_tokens * row);
        to += block.num_tokens * row;
      }
    }
    return out;
  }

  [[nodiscard]] NamedTensor Tensor(const std::string& name, uint32_t dim,
                                   std::span<const std::byte> data) const {
    return {name,
            TensorDtype(type_),
            {layout_.num_layers, num_tokens_, layout_.num_kv_heads, dim},
            data};
  }

 private:
  const CacheLayout layout_;
  const ElementType type_;
  uint64_t num_tokens_ = 0;
  std::vector<GetResult> blocks_;
};

absl::Status Fetch(Client* client, const ModelInfo& model, const std::vector<BlockId>& chain,
                   ElementType type, Joined* joined) {
  const uint64_t batch = std::max<uint64_t>(1, kBatchBytes / (2 * model.raw_block_bytes + 1));
  ProgressBar bar("get", chain.size());
  for (size_t begin = 0; begin < chain.size(); begin += batch) {
    std::vector<GetPart> parts;
    for (size_t i = begin; i < std::min<uint64_t>(chain.size(), begin + batch); ++i) {
      GetPart& part = parts.emplace_back();
      part.model = model.name;
      part.block_hash = chain[i];
      part.type = type;
    }
    std::vector<absl::StatusOr<GetResult>> results = client->GetAll(parts);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!results[i].ok()) {
        return absl::Status(results[i].status().code(),
                            absl::StrCat("block ", begin + i, ": ", results[i].status().message()));
      }
      joined->Add(std::move(*results[i]));
    }
    bar.Update(begin + results.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<CommandOutput> RunGet(const GetOptions& options, const CommandRunner& runner) {
  const absl::StatusOr<ElementType> type = ParseElement(options.dtype);
  if (!type.ok()) return UsageError(type.status().message());
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model, client->GetModel(options.model));
  if (model.layout.values_are_key_prefix && !options.values_out.empty()) {
    return UsageError("the model's values are the keys' prefix: give no --values-out");
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<BlockId> chain,
                            options.chain.Resolve(model.layout.block_tokens));
  Joined joined(model.layout, *type);
  SKETCHKV_RETURN_IF_ERROR(Fetch(client.get(), model, chain, *type, &joined));

  std::vector<OutputArray> arrays;
  std::vector<std::byte> keys, values;
  if (!options.keys_out.empty()) {
    keys = joined.Array(false);
    arrays.push_back({options.keys_out, joined.Tensor("keys", model.layout.head_dim, keys)});
  }
  if (!options.values_out.empty()) {
    values = joined.Array(true);
    arrays.push_back({options.values_out, joined.Tensor("values", joined.value_dim(), values)});
  }
  SKETCHKV_RETURN_IF_ERROR(WriteArrays(arrays));
  CommandOutput output;
  output.json = {{"model", model.name},
                 {"blocks", chain.size()},
                 {"tokens", joined.num_tokens()},
                 {"dtype", options.dtype}};
  output.text = absl::StrFormat("%d blocks, %d tokens\n", chain.size(), joined.num_tokens());
  return output;
}

}  // namespace

void AddGetCommand(CLI::App& app, CommandRunner* runner) {
  auto options = std::make_shared<GetOptions>();
  CLI::App* command = app.add_subcommand("get",
                                         "Get blocks decoded, as arrays [layers, tokens, kv_heads, "
                                         "dim]: npy, or safetensors where the\n"
                                         "file is named so (one file for both if the names are "
                                         "equal). Exit code 3 when a block is not\n"
                                         "there.");
  command->add_option("--model", options->model, "Registered model")->required();
  options->chain.AddTo(command);
  command->add_option("--keys-out", options->keys_out, "Write the keys here");
  command->add_option("--values-out", options->values_out, "Write the values here");
  command->add_option("--dtype", options->dtype, "fp32, fp16 or bf16 (safetensors only)")
      ->capture_default_str();
  command->callback([options, runner] { runner->Run([&] { return RunGet(*options, *runner); }); });
}

}  // namespace sketchkv::cli
