#include "client/cpp/cli/command.h"

#include <chrono>
#include <iostream>

#include "absl/strings/cord.h"

namespace sketchkv::cli {
namespace {

constexpr char kUsagePayload[] = "sketchkv.cli/usage";

}  // namespace

absl::Status UsageError(absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kExitUnreachable;
    default:
      return status.GetPayload(kUsagePayload).has_value() ? kExitUsage : kExitError;
  }
}

void CommandRunner::Run(const std::function<absl::StatusOr<CommandOutput>()>& body) {
  const absl::StatusOr<CommandOutput> output = body();
  if (output.ok()) {
    exit_code = output->exit_code;
    if (options_.json) {
      std::cout << output->json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace)
                << std::endl;
    } else {
      std::cout << output->text << std::flush;
    }
    return;
  }
  const absl::Status& status = output.status();
  exit_code = ExitCodeOf(status);
  const std::string code = absl::StatusCodeToString(status.code());
  std::cerr << "sketchkv: " << code << ": " << std::string(status.message()) << std::endl;
  if (options_.json) {
    const nlohmann::ordered_json error = {
        {"error", {{"code", code}, {"message", std::string(status.message())}}}};
    std::cout << error.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
  }
}

absl::StatusOr<std::unique_ptr<Client>> CommandRunner::Connect(bool encode_locally) const {
  ClientOptions options;
  options.target = options_.server;
  options.timeout = std::chrono::milliseconds(static_cast<int64_t>(options_.timeout_s * 1000));
  options.encode_locally = encode_locally;
  return Client::Create(options);
}

}  // namespace sketchkv::cli
