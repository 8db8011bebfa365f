#include "client/cpp/demo/accuracy.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace sketchkv::demo {
namespace {

// Natural logarithms of softmax(logits).
std::vector<double> LogSoftmax(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - max);
  const double log_sum = max + std::log(sum);
  std::vector<double> logs(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) logs[i] = logits[i] - log_sum;
  return logs;
}

size_t ArgMax(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

void Accuracy::Add(std::span<const float> exact_logits, std::span<const float> logits,
                   uint8_t next) {
  const std::vector<double> exact = LogSoftmax(exact_logits), other = LogSoftmax(logits);
  double divergence = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    divergence += std::exp(exact[i]) * (exact[i] - other[i]);
  }
  bits_ -= other[next] / std::numbers::ln2;
  kl_bits_ += divergence / std::numbers::ln2;
  agreements_ += ArgMax(exact_logits) == ArgMax(logits) ? 1 : 0;
  ++count_;
}

Reading Accuracy::Mean() const {
  if (count_ == 0) return {};
  const auto count = static_cast<double>(count_);
  return {bits_ / count, kl_bits_ / count, static_cast<double>(agreements_) / count};
}

}  // namespace sketchkv::demo
