#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cpp/demo/accuracy.h"
#include "client/cpp/examples/tiny_lm.h"
#include "sketchkv/client.h"

namespace sketchkv::demo {

// One profile's sums over the segments.
struct ProfileTrial {
  ModelInfo model;
  Accuracy decoded, attended;
  std::vector<double> put_ms, lookup_ms, get_ms;  // one a prefix of kStoredTokens
  uint64_t blocks_put = 0;
};

// Runs the model over texts it is given byte by byte, so that no figure depends on sampling: the
// first kStoredTokens of a segment are stored, the rest is the exact recent window, and each byte
// of the window after its first is predicted under the exact cache and under every profile's
// readings.
class TeacherForced {
 public:
  // `model` and `client` outlive it.
  TeacherForced(const example::TinyLm* model, Client* client) : model_(model), client_(client) {}

  // segment: kSegmentBytes bytes; salt: unlike that of any other segment. `on_step` hears what
  // begins: the exact pass, then each profile.
  [[nodiscard]] absl::Status Run(std::span<const uint8_t> segment, const std::string& salt,
                                 std::span<ProfileTrial> trials,
                                 const std::function<void(const std::string&)>& on_step);

  [[nodiscard]] const Accuracy& exact() const { return exact_; }

 private:
  // Logits of the recent window given a past, [window, vocab].
  [[nodiscard]] absl::Status Window(std::span<const uint8_t> segment, example::PastKv* past,
                                    std::vector<float>* logits) const;
  [[nodiscard]] absl::Status RunProfile(std::span<const uint8_t> segment, const std::string& salt,
                                        const example::LocalKv& exact_past,
                                        std::span<const float> exact_logits,
                                        ProfileTrial* trial) const;
  void AddWindow(std::span<const uint8_t> segment, std::span<const float> exact_logits,
                 std::span<const float> logits, Accuracy* accuracy) const;

  const example::TinyLm* const model_;
  Client* const client_;
  Accuracy exact_;
};

}  // namespace sketchkv::demo
