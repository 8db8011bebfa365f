#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/demo/demo_texts.h"
#include "client/cpp/demo/report.h"
#include "client/cpp/demo/teacher_forced.h"
#include "client/cpp/demo/workers.h"
#include "client/cpp/examples/tiny_lm.h"
#include "sketchkv/client.h"

namespace sketchkv::demo {

struct MeasurementOptions {
  std::string program;          // that knows the worker commands
  std::string model_dir;        // absolute, or from where the program runs
  std::string scratch_dir;      // for the prompt's file
  std::string server;           // host:port
  bool server_is_ours = false;  // nobody else uses it, and it goes when we are done
  std::vector<std::string> profiles;
};

// One measurement against one server: both workers, then the teacher-forced pass. For one use.
class Measurement {
 public:
  // `model` and `texts` outlive it.
  Measurement(const example::TinyLm& model, const DemoTexts& texts, MeasurementOptions options);

  // As RunDemo. On a server of others this run's blocks are deleted in the end, whatever happened.
  // On our own the bytes it says it holds must be those of the blocks put: INTERNAL otherwise.
  [[nodiscard]] absl::StatusOr<Report> Run();

 private:
  [[nodiscard]] absl::StatusOr<Report> MeasureAll(Client* client);
  // Its result, as it printed it.
  [[nodiscard]] absl::StatusOr<std::string> RunWorker(const std::string& command) const;
  [[nodiscard]] absl::StatusOr<std::vector<ProfileTrial>> RunTeacherForced(Client* client,
                                                                           Report* report) const;
  [[nodiscard]] std::string SegmentSalt(size_t index) const;
  [[nodiscard]] absl::Status CheckUsedBytes(Client* client, uint64_t used_before,
                                            const Report& report) const;
  void DeleteBlocks(Client* client) const;

  const example::TinyLm& model_;
  const DemoTexts& texts_;
  const MeasurementOptions options_;
  const std::string salt_;  // of this run
  WorkerOptions worker_;
};

}  // namespace sketchkv::demo
