#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/command.h"
#include "client/cpp/cli/element.h"
#include "client/cpp/cli/profile_spec.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

struct RegisterOptions {
  std::string name;
  CacheLayout layout;
  std::string dtype = "bf16", key_dtype, value_dtype;
  std::vector<std::string> profiles;
};

nlohmann::ordered_json LayoutJson(const CacheLayout& layout) {
  return {{"num_layers", layout.num_layers},
          {"num_kv_heads", layout.num_kv_heads},
          {"head_dim", layout.head_dim},
          {"value_dim", layout.value_dim},
          {"block_tokens", layout.block_tokens},
          {"key_dtype", ElementName(layout.key_type)},
          {"value_dtype", ElementName(layout.value_type)},
          {"key_scale", layout.key_scale},
          {"value_scale", layout.value_scale},
          {"value_source", layout.values_are_key_prefix ? "key_prefix" : "separate"}};
}

nlohmann::ordered_json ModelJson(const ModelInfo& model) {
  nlohmann::ordered_json profiles = nlohmann::ordered_json::array();
  for (const LayerProfile& profile : model.profiles) {
    profiles.push_back({{"name", profile.name},
                        {"version", profile.version},
                        {"layer_begin", profile.layer_begin},
                        {"layer_count", profile.layer_count},
                        {"sign_bits", profile.sign_bits},
                        {"num_outliers", profile.num_outliers},
                        {"value_bits", profile.value_bits},
                        {"cell_bytes", profile.cell_bytes}});
  }
  return {
      {"name", model.name},
      {"fingerprint", absl::BytesToHexString(model.fingerprint)},
      {"layout", LayoutJson(model.layout)},
      {"profiles", profiles},
      {"slot_bytes", model.slot_bytes},
      {"raw_block_bytes", model.raw_block_bytes},
      {"bits_per_number",
       {{"keys", model.key_bits}, {"values", model.value_bits}, {"all", model.bits_per_number}}}};
}

std::string ModelText(const ModelInfo& model) {
  const CacheLayout& layout = model.layout;
  std::string text = absl::StrFormat(
      "%s: %d layers, %d kv heads, head_dim %d, value_dim %d, blocks of %d tokens, %s/%s\n"
      "  %d bytes a block (raw %d), %.3f bits a number (keys %.3f, values %.3f)\n",
      model.name, layout.num_layers, layout.num_kv_heads, layout.head_dim, layout.value_dim,
      layout.block_tokens, ElementName(layout.key_type), ElementName(layout.value_type),
      model.slot_bytes, model.raw_block_bytes, model.bits_per_number, model.key_bits,
      model.value_bits);
  for (const LayerProfile& profile : model.profiles) {
    absl::StrAppendFormat(
        &text, "  layers %d to %d: %s, %d sign bits, %d outliers, %d value bits\n",
        profile.layer_begin, profile.layer_begin + profile.layer_count - 1, profile.name,
        profile.sign_bits, profile.num_outliers, profile.value_bits);
  }
  return text;
}

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
  std::vector<ProfileSpec> profiles;
  for (const std::string& text : options.profiles) {
    const absl::StatusOr<ProfileSpec> spec = ParseProfileSpec(text);
    if (!spec.ok()) return UsageError(spec.status().message());
    profiles.push_back(*spec);
  }
  SKETCHKV_ASSIGN_OR_RETURN(const std::unique_ptr<Client> client, runner.Connect());
  SKETCHKV_ASSIGN_OR_RETURN(const ModelInfo model,
                            client->RegisterModel(options.name, options.layout, profiles));
  return CommandOutput{ModelJson(model), ModelText(model)};
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
