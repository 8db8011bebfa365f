#pragma once

#include <cstdint>
#include <span>

namespace sketchkv::demo {

// How far one reading of the cache takes a model from its exact self, over a text.
struct Reading {
  double bits_per_byte = 0.0;  // cross-entropy of the text
  double kl_bits = 0.0;        // mean KL(exact || reading) of the next byte's distribution, in bits
  double top1_agreement = 0.0;  // share of positions whose most likely byte is the exact model's
};

// Sums over positions. Kullback-Leibler divergence is taken over the full distributions, in double.
class Accuracy {
 public:
  // Logits of one position, equally many, and the byte that really follows.
  void Add(std::span<const float> exact_logits, std::span<const float> logits, uint8_t next);
  [[nodiscard]] uint64_t count() const { return count_; }
  // Means over the positions added; zeros when there are none.
  [[nodiscard]] Reading Mean() const;

 private:
  double bits_ = 0.0, kl_bits_ = 0.0;
  uint64_t agreements_ = 0, count_ = 0;
};

}  // namespace sketchkv::demo
