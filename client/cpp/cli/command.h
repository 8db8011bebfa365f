#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sketchkv/client.h"

namespace sketchkv::cli {

// What scripts can rely on; --help says the same.
inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitNotFound = 3;
inline constexpr int kExitUnreachable = 4;

// Options of every command.
struct GlobalOptions {
  std::string server = "127.0.0.1:7415";
  double timeout_s = 30;
  bool json = false;
};

// What a command that worked has to say: `json` under --json, `text` else.
struct CommandOutput {
  nlohmann::ordered_json json;
  std::string text;
  int exit_code = kExitOk;
};

// Runs the body of the command that was parsed and keeps its exit code.
class CommandRunner {
 public:
  explicit CommandRunner(const GlobalOptions* options) : options_(*options) {}

  // Prints what `body` returns to stdout, or its error to stderr (under --json also, as
  // {"error": {"code", "message"}}, to stdout).
  void Run(const std::function<absl::StatusOr<CommandOutput>()>& body);

  [[nodiscard]] absl::StatusOr<std::unique_ptr<Client>> Connect(bool encode_locally = false) const;
  [[nodiscard]] const GlobalOptions& options() const { return options_; }
  int exit_code = kExitOk;

 private:
  const GlobalOptions& options_;
};

// NOT_FOUND: 3; UNAVAILABLE, DEADLINE_EXCEEDED: 4; a UsageError: 2; other errors: 1.
[[nodiscard]] int ExitCodeOf(const absl::Status& status);

// INVALID_ARGUMENT for what the command line itself has wrong; ends the program with 2.
[[nodiscard]] absl::Status UsageError(absl::string_view message);

// Each adds one command to `app`; `runner` outlives the parsing.
void AddPutCommand(CLI::App& app, CommandRunner* runner);
void AddGetCommand(CLI::App& app, CommandRunner* runner);
void AddLookupCommand(CLI::App& app, CommandRunner* runner);
void AddScoreCommand(CLI::App& app, CommandRunner* runner);
void AddAttendCommand(CLI::App& app, CommandRunner* runner);
void AddStatCommand(CLI::App& app, CommandRunner* runner);
void AddModelsCommand(CLI::App& app, CommandRunner* runner);
void AddInspectCommand(CLI::App& app, CommandRunner* runner);

}  // namespace sketchkv::cli
