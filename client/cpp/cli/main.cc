// sketchkv: the command line. Each command lies in a file of its own; this one has the options they
// share.
#include <CLI/CLI.hpp>

#include "client/cpp/cli/command.h"
#include "client/cpp/cli/tune_command.h"
#include "client/cpp/demo/demo_command.h"

namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 an error of the server or of a file; 2 wrong usage; 3 not found, a "
    "miss;\n"
    "4 the server cannot be reached or did not answer in time.";

void AddGlobalOptions(CLI::App& app, sketchkv::cli::GlobalOptions* options) {
  app.add_option("--server", options->server, "gRPC target of sketchkvd")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->capture_default_str();
  app.add_option("--timeout", options->timeout_s, "Seconds each call may take, retries included")
      ->check(CLI::Range(0.001, 86400.0))
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
      ->capture_default_str();
  app.add_flag("--json", options->json, "Write JSON to stdout, errors too");
  app.fallthrough();  // so that they may stand after the command as well
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Client of sketchkvd, the store of compressed KV-cache blocks", "sketchkv");
  sketchkv::cli::GlobalOptions options;
  sketchkv::cli::CommandRunner runner(&options);
  AddGlobalOptions(app, &options);
  app.set_version_flag("--version", SKETCHKV_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  sketchkv::cli::AddPutCommand(app, &runner);
  sketchkv::cli::AddGetCommand(app, &runner);
  sketchkv::cli::AddLookupCommand(app, &runner);
  sketchkv::cli::AddScoreCommand(app, &runner);
  sketchkv::cli::AddAttendCommand(app, &runner);
  sketchkv::cli::AddStatCommand(app, &runner);
  sketchkv::cli::AddModelsCommand(app, &runner);
  sketchkv::cli::AddInspectCommand(app, &runner);
  sketchkv::cli::AddTuneCommand(app, &runner);
  sketchkv::demo::AddDemoCommand(app, &runner.exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {  // CLI11's only way to report
    return app.exit(error) == 0 ? sketchkv::cli::kExitOk : sketchkv::cli::kExitUsage;
  }
  return runner.exit_code;
}
