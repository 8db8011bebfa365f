#include "tests/bench/isa_levels.h"

namespace sketchkv::bench {

std::vector<std::string> IsaLevels() {
  const Isa best = *ChooseIsa("auto");
  std::vector<std::string> names = {std::string(IsaName(best))};
  // Whatever levels there are: the enumeration ends where a level has no name.
  for (int level = 0;; ++level) {
    const Isa isa = static_cast<Isa>(level);
    if (IsaName(isa) == "unknown") return names;
    if (isa != best && IsaSupported(isa)) names.emplace_back(IsaName(isa));
  }
}

}  // namespace sketchkv::bench
