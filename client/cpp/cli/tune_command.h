#pragma once

#include <CLI/CLI.hpp>

#include "client/cpp/cli/command.h"

namespace sketchkv::cli {

// Adds `sketchkv tune`; `runner` outlives the parsing. It asks no server.
void AddTuneCommand(CLI::App& app, CommandRunner* runner);

}  // namespace sketchkv::cli
