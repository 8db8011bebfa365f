#include "service/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace sketchkv {
namespace {

constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();

// The number a limit file holds; kNone when there is no such file or it says "max".
uint64_t ReadLimit(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  uint64_t limit = 0;
  if (!(file >> text) || !absl::SimpleAtoi(text, &limit)) return kNone;
  return limit;
}

// The smallest `file` in the folders from `mount` + `group` up to `mount`.
uint64_t SmallestUpwards(const std::string& mount, std::string group, const std::string& file) {
  uint64_t limit = kNone;
  while (true) {
    limit = std::min(limit, ReadLimit(absl::StrCat(mount, group, "/", file)));
    if (group.empty() || group == "/") return limit;
    group.resize(group.rfind('/'));
  }
}

uint64_t CgroupLimit(const std::string& root) {
  const std::string mount = absl::StrCat(root, "sys/fs/cgroup");
  std::ifstream groups(absl::StrCat(root, "proc/self/cgroup"));
  uint64_t limit = kNone;
  for (std::string line; std::getline(groups, line);) {
    // "0::/path" in v2; "4:memory:/path" in v1.
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string group = line.substr(second + 1);
    if (controllers.empty()) {
      limit = std::min(limit, SmallestUpwards(mount, group, "memory.max"));
    } else if (absl::StrContains(absl::StrCat(",", controllers, ","), ",memory,")) {
      limit = std::min(limit, SmallestUpwards(absl::StrCat(mount, "/memory"), group,
                                              "memory.limit_in_bytes"));
    }
  }
  return limit;
}

uint64_t MachineMemory(const std::string& root) {
  std::ifstream info(absl::StrCat(root, "proc/meminfo"));
  for (std::string line; std::getline(info, line);) {
    std::istringstream fields(line);
    std::string name;
    uint64_t kib = 0;
    if (fields >> name >> kib && name == "MemTotal:") return kib * 1024;
  }
  return uint64_t{1} << 30;
}

}  // namespace

uint64_t MemoryLimitBytes(const std::string& root) {
  return std::min(MachineMemory(root), CgroupLimit(root));
}

}  // namespace sketchkv
