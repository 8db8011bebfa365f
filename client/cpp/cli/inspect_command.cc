#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "client/cpp/cli/array_file.h"
#include "client/cpp/cli/command.h"
#include "client/cpp/cli/progress_bar.h"
#include "client/cpp/files/npy.h"
#include "client/cpp/files/safetensors.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::cli {
namespace {

struct Summary {
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  uint64_t num_nan = 0;
  uint64_t num_inf = 0;
};

absl::StatusOr<Summary> Summarise(const NamedTensor& tensor) {
  Summary summary;
  std::array<float, 4096> chunk;
  const uint64_t count = tensor.num_elements();
  for (uint64_t begin = 0; begin < count; begin += chunk.size()) {
    const std::span<float> values =
        std::span(chunk).first(std::min<uint64_t>(chunk.size(), count - begin));
    SKETCHKV_RETURN_IF_ERROR(ReadFloats(tensor, begin, values));
    for (const float value : values) {
      if (std::isnan(value)) {
        ++summary.num_nan;
      } else {
        summary.num_inf += std::isinf(value);
        summary.min = std::min<double>(summary.min, value);
        summary.max = std::max<double>(summary.max, value);
      }
    }
  }
  return summary;
}

// JSON has no infinities; a tensor of nothing but NaN has no extremes.
nlohmann::ordered_json Number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

absl::Status Describe(std::span<const NamedTensor> tensors, CommandOutput* output) {
  uint64_t total = 0, done = 0;
  for (const NamedTensor& tensor : tensors) total += tensor.data.size();
  ProgressBar bar("read", total);
  output->json["tensors"] = nlohmann::ordered_json::array();
  for (const NamedTensor& tensor : tensors) {
    SKETCHKV_ASSIGN_OR_RETURN(const Summary summary, Summarise(tensor));
    output->json["tensors"].push_back({{"name", tensor.name},
                                       {"dtype", tensor.dtype},
                                       {"shape", tensor.shape},
                                       {"bytes", tensor.data.size()},
                                       {"min", Number(summary.min)},
                                       {"max", Number(summary.max)},
                                       {"num_nan", summary.num_nan},
                                       {"num_inf", summary.num_inf}});
    absl::StrAppendFormat(&output->text, "%s %s %s %d bytes min %g max %g nan %d inf %d\n",
                          tensor.name.empty() ? "array" : absl::CHexEscape(tensor.name),
                          tensor.dtype, ShapeString(tensor.shape), tensor.data.size(), summary.min,
                          summary.max, summary.num_nan, summary.num_inf);
    done += tensor.data.size();
    bar.Update(done);
  }
  return absl::OkStatus();
}

absl::StatusOr<CommandOutput> RunInspect(const std::string& path) {
  CommandOutput output;
  if (HasExtension(path, ".npy")) {
    const absl::StatusOr<NpyFile> file = NpyFile::Open(path);
    if (!file.ok()) return FileError(file.status());
    const std::string header(absl::StripAsciiWhitespace(file->header()));
    output.json = {{"format", "npy"}, {"header", header}};
    output.text = absl::StrFormat("npy %s\n", absl::CHexEscape(header));
    SKETCHKV_RETURN_IF_ERROR(Describe(std::span(&file->tensor(), 1), &output));
    return output;
  }
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return FileError(file.status());
  output.json = {{"format", "safetensors"}, {"metadata", file->metadata()}};
  output.text = absl::StrFormat("safetensors, %d tensors\n", file->tensors().size());
  for (const auto& [key, value] : file->metadata()) {
    absl::StrAppendFormat(&output.text, "metadata %s: %s\n", absl::CHexEscape(key),
                          absl::CHexEscape(value));
  }
  SKETCHKV_RETURN_IF_ERROR(Describe(file->tensors(), &output));
  return output;
}

}  // namespace

void AddInspectCommand(CLI::App& app, CommandRunner* runner) {
  auto path = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "Header and tensors of a safetensors or npy file: dtype, shape, bytes, extremes, NaN.");
  command->add_option("file", *path, "FILE.npy, or else safetensors")->required();
  command->callback([path, runner] { runner->Run([&] { return RunInspect(*path); }); });
}

}  // namespace sketchkv::cli
