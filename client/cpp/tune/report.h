#pragma once

#include <string>

#include "client/cpp/tune/tune.h"

namespace sketchkv::tune {

// The table behind the choice: of each layer the chosen candidate, the next cheaper and the next
// better one of those that no other beats; then the totals.
[[nodiscard]] std::string ReportText(const TuneResult& result);

// Everything that was measured, as JSON text; README.md says what each field means.
[[nodiscard]] std::string ReportJson(const TuneResult& result);

}  // namespace sketchkv::tune
