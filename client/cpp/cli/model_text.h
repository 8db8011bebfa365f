#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "sketchkv/types.h"

namespace sketchkv::cli {

// A registered model, for scripts and for people.
[[nodiscard]] nlohmann::ordered_json ModelJson(const ModelInfo& model);
[[nodiscard]] std::string ModelText(const ModelInfo& model);

}  // namespace sketchkv::cli
