#include "client/cpp/cli/tables_to_register.h"

#include <utility>

#include "client/cpp/cli/profile_spec.h"
#include "client/cpp/files/tables_file.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

BasisSpec SpecOf(Basis basis) {
  return {std::move(basis.rows), std::move(basis.group_bits), std::move(basis.group_rms)};
}

}  // namespace

absl::StatusOr<TablesToRegister> ReadTablesToRegister(const std::string& path) {
  SKETCHKV_ASSIGN_OR_RETURN(TablesFile file, ReadTablesFile(path));
  TablesToRegister tables;
  for (uint32_t i = 0; i < file.heads.size(); ++i) {
    HeadTable& head = file.heads[i];
    tables.heads.push_back({i / file.num_kv_heads, i % file.num_kv_heads, std::move(head.key_mean),
                            std::move(head.outlier_channels), SpecOf(std::move(head.key_basis)),
                            std::move(head.value_mean), SpecOf(std::move(head.value_basis))});
  }
  for (const std::string& text : file.profiles) {
    SKETCHKV_ASSIGN_OR_RETURN(ProfileSpec spec, ParseProfileSpec(text));
    tables.profiles.push_back(std::move(spec));
  }
  return tables;
}

}  // namespace sketchkv::cli
