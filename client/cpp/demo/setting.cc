#include "client/cpp/demo/setting.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "client/cpp/cli/tables_to_register.h"
#include "client/cpp/examples/stored_prefix.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::demo {

absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& server) {
  ClientOptions options;
  options.target = server;
  options.timeout = std::chrono::seconds(60);
  SKETCHKV_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Create(options));
  SKETCHKV_RETURN_IF_ERROR(client->WaitUntilServing(std::chrono::seconds(20)));
  return client;
}

std::string ModelBaseName(const std::string& model_dir) {
  // A trailing slash leaves an empty last component.
  const std::filesystem::path path = std::filesystem::path(model_dir + "/").lexically_normal();
  return path.parent_path().filename().string();
}

std::string ModelName(const std::string& model_dir, const std::string& profile) {
  return absl::StrCat(ModelBaseName(model_dir), "/", profile);
}

absl::StatusOr<ModelInfo> Register(Client* client, const std::string& model_dir,
                                   const std::string& profile, const example::KvShape& shape) {
  const std::string name = ModelName(model_dir, profile);
  const CacheLayout layout = example::MakeLayout(shape, kBlockTokens);
  if (profile != kTunedProfile) return client->RegisterModel(name, layout, {{.name = profile}});
  SKETCHKV_ASSIGN_OR_RETURN(const cli::TablesToRegister tables,
                            cli::ReadTablesToRegister(model_dir + "/klt.safetensors"));
  SKETCHKV_ASSIGN_OR_RETURN(const std::string digest,
                            client->UploadTables(layout, tables.heads));
  return client->RegisterModel(name, layout, tables.profiles, digest);
}

absl::StatusOr<std::vector<uint8_t>> ReadText(const std::string& path, uint64_t min_bytes) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  std::vector<uint8_t> text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (text.size() < min_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", text.size(), " bytes, at least ", min_bytes, " are needed"));
  }
  return text;
}

}  // namespace sketchkv::demo
