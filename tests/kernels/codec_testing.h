#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/codec.h"
#include "tests/testing/random_tables.h"
#include "tests/testing/reference_codec.h"

namespace sketchkv::testing {

// Numbers for tests: the same on every machine. Normal ones are sums of uniform ones, which is all
// that tests of bytes need.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Bits();
  double Uniform();  // [0, 1)
  double Normal();   // polar method, for statistics

 private:
  uint64_t state_;
};

// Rows in a dtype, with guard bytes of NaN before, between and behind: what strays reads NaN.
class GuardedRows {
 public:
  GuardedRows(uint32_t num_rows, uint32_t dim, DType dtype, size_t misalignment, size_t gap);

  void Set(uint32_t row, uint32_t channel, double value);  // rounds to nearest
  void SetBits(uint32_t row, uint32_t channel, uint64_t bits);
  [[nodiscard]] RowsView view() const { return {bytes_.data() + offset_, stride_}; }
  [[nodiscard]] Matrix Doubles(double scale) const;
  [[nodiscard]] DType dtype() const { return dtype_; }

 private:
  uint32_t num_rows_, dim_;
  DType dtype_;
  size_t stride_, offset_;
  std::vector<std::byte> bytes_;
};

// Keys or values with some spread between channels and tokens, and one zero row in 17.
GuardedRows RandomRows(uint32_t num_rows, uint32_t dim, DType dtype, uint64_t seed,
                       size_t misalignment = 0, double magnitude = 1.0);

// Output bytes that no one wrote stay this.
constexpr std::byte kPoison{0xA5};

KvLayout Layout(uint32_t head_dim, uint32_t value_dim, uint32_t block_tokens,
                DType dtype = DType::kBf16);
ProfileRequest Named(const std::string& name);
// Aborts when the profile does not resolve. Tables are those of RandomTables(layout).
CodecProfile Resolve(const ProfileRequest& request, const KvLayout& layout, uint32_t layer = 0);
// With RandomTables(layout) where the profile uses tables.
std::unique_ptr<BlockCodec> MakeCodec(const KvLayout& layout, const CodecProfile& profile, Isa isa);
std::vector<Isa> SupportedIsas();
Isa BestIsa();

std::vector<std::byte> EncodeCell(const CellCodec& codec, const GuardedRows& keys,
                                  const GuardedRows& values, uint32_t num_tokens);

// [count][dim] of normal numbers.
std::vector<float> RandomQueries(uint32_t count, uint32_t dim, uint64_t seed);
std::vector<double> RowOf(const std::vector<float>& queries, uint32_t row, uint32_t dim);

// Every profile and knob that gives other bytes, by a name for messages.
struct NamedRequest {
  std::string name;
  ProfileRequest request;
};
std::vector<NamedRequest> AllRequests();

}  // namespace sketchkv::testing
