#pragma once

#include <CLI/CLI.hpp>

namespace sketchkv::demo {

// Adds `demo` to `app`, and its two hidden worker commands, which `demo` runs as processes of their
// own. A command that ran leaves its exit code in *exit_code: 0 all bars hold, 1 something failed,
// 4 the server cannot be reached, 5 a bar does not hold, 130 interrupted. Both outlive the parsing.
void AddDemoCommand(CLI::App& app, int* exit_code);

}  // namespace sketchkv::demo
