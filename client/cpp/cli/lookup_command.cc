#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/chain.h"
#include "client/cpp/cli/command.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

struct LookupOptions {
  std::string model;
  double lease_s = 0;
  ChainOptions chain;
};

absl::StatusOr<CommandOutput> RunLookup(const LookupOptions& options, const CommandRunner& runner) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model, client->GetModel(options.model));
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<BlockId> chain,
                            options.chain.Resolve(model.layout.block_tokens));
  SKETCHKV_ASSIGN_OR_RETURN(
      const LookupResult found,
      client->Lookup(model.name, chain,
                     std::chrono::milliseconds(static_cast<int64_t>(options.lease_s * 1000))));
  CommandOutput output;
  output.json = {{"model", model.name},
                 {"asked_blocks", chain.size()},
                 {"num_blocks", found.num_blocks},
                 {"num_tokens", found.num_tokens},
                 {"lease_id", found.lease_id},
                 {"lease_ttl_ms", found.lease_ttl_ms}};
  output.text = absl::StrFormat("%d of %d blocks, %d tokens\n", found.num_blocks, chain.size(),
                                found.num_tokens);
  if (found.lease_id != 0) {
    absl::StrAppend(&output.text, "lease ", found.lease_id, " for ", found.lease_ttl_ms, " ms\n");
  }
  if (found.num_blocks == 0) output.exit_code = kExitNotFound;
  return output;
}

}  // namespace

void AddLookupCommand(CLI::App& app, CommandRunner* runner) {
  auto options = std::make_shared<LookupOptions>();
  CLI::App* command = app.add_subcommand(
      "lookup", "The longest stored prefix of a chain. Exit code 3 when not even its first block.");
  command->add_option("--model", options->model, "Registered model")->required();
  options->chain.AddTo(command);
  command->add_option("--lease", options->lease_s, "Pin what is found for so many seconds")
      ->check(CLI::Range(0.0, 600.0));
  command->callback(
      [options, runner] { runner->Run([&] { return RunLookup(*options, *runner); }); });
}

}  // namespace sketchkv::cli
