#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/array_file.h"
#include "client/cpp/cli/chain.h"
#include "client/cpp/cli/command.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

struct QueryOptions {
  std::string model, queries, out, lse_out;
  ChainOptions chain;
  uint64_t lease_id = 0;
  uint32_t layer = 0, head_begin = 0, head_count = 0, token_begin = 0;
  int64_t token_end = -1;
  float scale = 0, softcap = 0;
};

// The call and what it points to.
struct LoadedCall {
  std::vector<float> queries;
  AttentionCall call;
  uint64_t query_tokens = 0;
  uint64_t query_heads = 0;
};

absl::Status SetTarget(const QueryOptions& options, uint32_t block_tokens, AttentionItem* item) {
  if (options.lease_id != 0) {
    item->lease_id = options.lease_id;
    return absl::OkStatus();
  }
  SKETCHKV_ASSIGN_OR_RETURN(std::vector<BlockId> chain, options.chain.Resolve(block_tokens));
  if (!options.chain.blocks.empty() && chain.size() > 1) {
    item->blocks = std::move(chain);
  } else {
    item->tip = chain.back();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LoadedCall>> Load(const QueryOptions& options,
                                                 const ModelInfo& model) {
  auto loaded = std::make_unique<LoadedCall>();
  SKETCHKV_ASSIGN_OR_RETURN(const InputArray array, OpenArray(options.queries, "queries"));
  const std::vector<uint64_t>& shape = array.tensor.shape;
  const CacheLayout& layout = model.layout;
  if (options.head_begin >= layout.num_kv_heads) {
    return UsageError(absl::StrCat("--head-begin ", options.head_begin,
                                   " is not below the model's ", layout.num_kv_heads, " kv heads"));
  }
  const uint64_t heads =
      options.head_count != 0 ? options.head_count : layout.num_kv_heads - options.head_begin;
  if (shape.size() != 3 || shape[0] == 0 || shape[1] == 0 || shape[1] % heads != 0 ||
      shape[2] != layout.head_dim) {
    return absl::InvalidArgumentError(absl::StrCat("queries have shape ", ShapeString(shape),
                                                   ", want [tokens, a multiple of ", heads, ", ",
                                                   layout.head_dim, "]"));
  }
  loaded->query_tokens = shape[0];
  loaded->query_heads = shape[1];
  loaded->queries.resize(array.tensor.num_elements());
  SKETCHKV_RETURN_IF_ERROR(ReadFloats(array.tensor, 0, loaded->queries));
  AttentionItem item;
  SKETCHKV_RETURN_IF_ERROR(SetTarget(options, layout.block_tokens, &item));
  item.layer = options.layer;
  item.head_begin = options.head_begin;
  item.head_count = static_cast<uint32_t>(heads);
  item.num_query_tokens = static_cast<uint32_t>(shape[0]);
  item.token_begin = options.token_begin;
  if (options.token_end >= 0) item.token_end = static_cast<uint32_t>(options.token_end);
  item.softmax_scale = options.scale;
  item.logit_softcap = options.softcap;
  loaded->call.model = model.name;
  loaded->call.queries_per_kv_head = static_cast<uint32_t>(shape[1] / heads);
  loaded->call.items.push_back(std::move(item));
  loaded->call.queries = loaded->queries;
  return loaded;
}

NamedTensor FloatTensor(const std::string& name, std::vector<uint64_t> shape,
                        std::span<const float> data) {
  return {name, "F32", std::move(shape), std::as_bytes(data)};
}

absl::StatusOr<CommandOutput> RunAttend(const QueryOptions& options, const CommandRunner& runner) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model, client->GetModel(options.model));
  SKETCHKV_ASSIGN_OR_RETURN(const auto loaded, Load(options, model));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<AttentionOutput> outputs,
                            client->Attend(loaded->call));
  const AttentionOutput& result = outputs[0];
  const uint64_t tokens = loaded->query_tokens;
  const uint64_t heads = loaded->query_heads;
  std::vector<OutputArray> arrays;
  if (!options.out.empty()) {
    arrays.push_back(
        {options.out, FloatTensor("out", {tokens, heads, model.layout.value_dim}, result.out)});
  }
  if (!options.lse_out.empty()) {
    arrays.push_back({options.lse_out, FloatTensor("lse", {tokens, heads}, result.lse)});
  }
  SKETCHKV_RETURN_IF_ERROR(WriteArrays(arrays));
  CommandOutput output;
  output.json = {{"model", model.name},
                 {"layer", options.layer},
                 {"shape", {tokens, heads, model.layout.value_dim}}};
  for (const float lse : result.lse) {  // JSON has no infinities: an empty range is null
    output.json["lse"].push_back(std::isfinite(lse) ? nlohmann::ordered_json(lse) : nullptr);
  }
  for (uint64_t i = 0; i < result.lse.size(); ++i) {
    absl::StrAppendFormat(&output.text, "token %d head %d lse %g\n", i / heads, i % heads,
                          result.lse[i]);
  }
  return output;
}

absl::StatusOr<CommandOutput> RunScore(const QueryOptions& options, const CommandRunner& runner) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model, client->GetModel(options.model));
  SKETCHKV_ASSIGN_OR_RETURN(const auto loaded, Load(options, model));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<ScoreOutput> outputs, client->Score(loaded->call));
  const ScoreOutput& result = outputs[0];
  if (!options.out.empty()) {
    SKETCHKV_RETURN_IF_ERROR(WriteArrays(
        {{options.out,
          FloatTensor("logits", {loaded->query_tokens, loaded->query_heads, result.num_tokens},
                      result.logits)}}));
  }
  CommandOutput output;
  output.json = {{"model", model.name},
                 {"layer", options.layer},
                 {"token_begin", result.token_begin},
                 {"shape", {loaded->query_tokens, loaded->query_heads, result.num_tokens}}};
  const uint64_t rows = loaded->query_tokens * loaded->query_heads;
  for (uint64_t row = 0; row < rows && result.num_tokens > 0; ++row) {
    const float* logits = result.logits.data() + row * result.num_tokens;
    const uint64_t best = std::max_element(logits, logits + result.num_tokens) - logits;
    output.json["best"].push_back({{"token", result.token_begin + best}, {"logit", logits[best]}});
    absl::StrAppendFormat(&output.text, "token %d head %d best logit %g at token %d of %d\n",
                          row / loaded->query_heads, row % loaded->query_heads, logits[best],
                          result.token_begin + best, result.num_tokens);
  }
  return output;
}

void AddOptions(CLI::App* command, QueryOptions* options) {
  command->add_option("--model", options->model, "Registered model")->required();
  command
      ->add_option("--queries", options->queries,
                   "Array [tokens, query heads, head_dim], npy or safetensors")
      ->required();
  command->add_option("--layer", options->layer, "Layer")->required();
  auto* group = command->add_option_group("tokens", "What to attend over (exactly one)");
  group->add_option("--chain-of,--tokens", options->chain.token_file,
                    "File of token ids: the chain `put --tokens` gave them");
  group->add_option("--chain", options->chain.chain_file,
                    "File of block hashes: the last one and all its ancestors");
  group->add_option(
      "--tip,--block", options->chain.blocks,
      "Hash in hexadecimal: that block and its ancestors; several: just these blocks");
  group->add_option("--lease", options->lease_id, "Lease: the chain it pins");
  group->require_option(1);
  command->add_option("--salt", options->chain.salt,
                      "With --chain-of: the salt of the root's hash");
  command->add_option("--head-begin", options->head_begin, "First kv head");
  command->add_option("--head-count", options->head_count, "Number of kv heads; 0: all others");
  command->add_option("--token-begin", options->token_begin, "First token to use");
  command->add_option("--token-end", options->token_end, "One past the last token to use")
      ->check(CLI::Range(int64_t{0}, int64_t{UINT32_MAX}));
  command->add_option("--scale", options->scale, "Softmax scale; 0: 1/sqrt(head_dim)");
  command->add_option("--softcap", options->softcap, "Logit softcap; 0: none");
}

}  // namespace

void AddAttendCommand(CLI::App& app, CommandRunner* runner) {
  auto options = std::make_shared<QueryOptions>();
  CLI::App* command = app.add_subcommand(
      "attend", "Partial attention of queries over stored blocks: output and log-sum-exp.");
  AddOptions(command, options.get());
  command->add_option("--out", options->out, "Write the output [tokens, query heads, value_dim]");
  command->add_option("--lse-out", options->lse_out, "Write the log-sum-exp [tokens, query heads]");
  command->callback(
      [options, runner] { runner->Run([&] { return RunAttend(*options, *runner); }); });
}

void AddScoreCommand(CLI::App& app, CommandRunner* runner) {
  auto options = std::make_shared<QueryOptions>();
  CLI::App* command = app.add_subcommand("score", "Logits of queries over stored blocks.");
  AddOptions(command, options.get());
  command->add_option("--out", options->out,
                      "Write the logits [tokens, query heads, stored tokens]");
  command->callback(
      [options, runner] { runner->Run([&] { return RunScore(*options, *runner); }); });
}

}  // namespace sketchkv::cli
