#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/array_file.h"
#include "client/cpp/cli/command.h"
#include "client/cpp/cli/element.h"
#include "client/cpp/cli/model_text.h"
#include "client/cpp/cli/profile_spec.h"
#include "client/cpp/cli/tables_to_register.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

struct RegisterOptions {
  std::string name;
  CacheLayout layout;
  std::string dtype = "bf16", key_dtype, value_dtype;
  std::vector<std::string> profiles;
  std::string tables_file;
};

absl::StatusOr<CommandOutput> RunList(const CommandRunner& runner) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const std::vector<ModelInfo> models, client->ListModels());
  CommandOutput output;
  output.json = {{"models", nlohmann::ordered_json::array()}};
  for (const ModelInfo& model : models) {
    output.json["models"].push_back(ModelJson(model));
    output.text += ModelText(model);
  }
  return output;
}

absl::StatusOr<std::vector<ProfileSpec>> ParseProfiles(const std::vector<std::string>& texts) {
  std::vector<ProfileSpec> profiles;
  for (const std::string& text : texts) {
    SKETCHKV_ASSIGN_OR_RETURN(ProfileSpec spec, ParseProfileSpec(text));
    profiles.push_back(std::move(spec));
  }
  return profiles;
}

absl::StatusOr<CommandOutput> RunRegister(RegisterOptions options, const CommandRunner& runner) {
  const auto parse = [](const std::string& name, const std::string& fallback, ElementType* type) {
    const absl::StatusOr<ElementType> parsed = ParseElement(name.empty() ? fallback : name);
    if (!parsed.ok()) return UsageError(parsed.status().message());
    *type = *parsed;
    return absl::OkStatus();
  };
  SKETCHKV_RETURN_IF_ERROR(parse(options.key_dtype, options.dtype, &options.layout.key_type));
  SKETCHKV_RETURN_IF_ERROR(parse(options.value_dtype, options.dtype, &options.layout.value_type));
  if (options.layout.value_dim == 0) options.layout.value_dim = options.layout.head_dim;
  absl::StatusOr<std::vector<ProfileSpec>> profiles = ParseProfiles(options.profiles);
  if (!profiles.ok()) return UsageError(profiles.status().message());
  TablesToRegister tables;
  if (!options.tables_file.empty()) {
    absl::StatusOr<TablesToRegister> read = ReadTablesToRegister(options.tables_file);
    if (!read.ok()) return FileError(read.status());
    tables = *std::move(read);
    if (profiles->empty()) *profiles = tables.profiles;
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  std::string digest;
  if (!options.tables_file.empty()) {
    SKETCHKV_ASSIGN_OR_RETURN(digest, client->UploadTables(options.layout, tables.heads));
  }
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model,
                            client->RegisterModel(options.name, options.layout, *profiles, digest));
  CommandOutput output{ModelJson(model), ModelText(model)};
  if (!digest.empty() && model.tables_digest.empty()) {
    output.text += "no profile uses the tables: name one by --profile, such as klt\n";
  }
  return output;
}

absl::StatusOr<CommandOutput> RunUnregister(const std::string& name, const CommandRunner& runner) {
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t dropped, client->UnregisterModel(name));
  return CommandOutput{{{"name", name}, {"dropped_blocks", dropped}},
                       absl::StrFormat("%s: %d blocks dropped\n", name, dropped)};
}

void AddRegister(CLI::App* models, CommandRunner* runner) {
  auto options = std::make_shared<RegisterOptions>();
  CLI::App* command =
      models->add_subcommand("register", "Register a model; the same again is no error.");
  CacheLayout& layout = options->layout;
  layout.block_tokens = 64;
  command->add_option("name", options->name, "1 to 128 of A-Z a-z 0-9 . _ / -")->required();
  command->add_option("--layers", layout.num_layers, "1 to 256")->required();
  command->add_option("--kv-heads", layout.num_kv_heads, "1 to 256")->required();
  command->add_option("--head-dim", layout.head_dim, "16 to 576, a multiple of 8")->required();
  command->add_option("--value-dim", layout.value_dim, "Default: the head dimension");
  command->add_option("--block-tokens", layout.block_tokens, "1 to 1024")->capture_default_str();
  command->add_option("--dtype", options->dtype, "bf16, fp16, fp32, fp8_e4m3 or fp8_e5m2")
      ->capture_default_str();
  command->add_option("--key-dtype", options->key_dtype, "Default: --dtype");
  command->add_option("--value-dtype", options->value_dtype, "Default: --dtype");
  command->add_option("--key-scale", layout.key_scale, "Real key = fp8 key * this");
  command->add_option("--value-scale", layout.value_scale, "Likewise");
  command->add_flag("--values-are-key-prefix", layout.values_are_key_prefix,
                    "Multi-head latent attention; profile raw only");
  command->add_option("--profile", options->profiles, kProfileHelp);
  command->add_option("--tables", options->tables_file,
                      "Tables to upload and register with, as `sketchkv tune` writes them; their "
                      "profiles are taken unless --profile is given");
  command->callback(
      [options, runner] { runner->Run([&] { return RunRegister(*options, *runner); }); });
}

}  // namespace

void AddModelsCommand(CLI::App& app, CommandRunner* runner) {
  CLI::App* models = app.add_subcommand("models", "List, register and unregister models.");
  models->require_subcommand(1);
  CLI::App* list = models->add_subcommand("list", "All registered models.");
  list->callback([runner] { runner->Run([&] { return RunList(*runner); }); });
  AddRegister(models, runner);
  auto name = std::make_shared<std::string>();
  CLI::App* unregister =
      models->add_subcommand("unregister", "Forget a model and drop its blocks.");
  unregister->add_option("name", *name, "Registered model")->required();
  unregister->callback(
      [name, runner] { runner->Run([&] { return RunUnregister(*name, *runner); }); });
}

}  // namespace sketchkv::cli
