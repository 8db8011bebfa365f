#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sketchkv/types.h"

namespace sketchkv::cli {

// A file of `sketchkv tune` in the client's terms.
struct TablesToRegister {
  std::vector<HeadTableSpec> heads;
  std::vector<ProfileSpec> profiles;
};

// As ReadTablesFile and ParseProfileSpec.
[[nodiscard]] absl::StatusOr<TablesToRegister> ReadTablesToRegister(const std::string& path);

}  // namespace sketchkv::cli
