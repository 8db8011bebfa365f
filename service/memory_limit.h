#pragma once

#include <cstdint>
#include <string>

namespace sketchkv {

// The memory this process may use: the smallest of the machine's and of its cgroups' limits (v2 or
// v1, from its own cgroup up). `root` is "/" outside tests.
[[nodiscard]] uint64_t MemoryLimitBytes(const std::string& root);

}  // namespace sketchkv
