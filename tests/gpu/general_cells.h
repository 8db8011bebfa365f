#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "tests/gpu/device_array.h"
#include "tests/gpu/general_runner.h"
#include "tests/kernels/codec_testing.h"

namespace sketchkv::testing {

// What the general path is asked for.
struct GeneralShape {
  uint32_t head_dim, value_dim, block_tokens;
  DType dtype = DType::kBf16;
  double magnitude = 1.0;
};

// A layer of kHeads kv heads, each with tables of its own, and what kernels need of it.
class GeneralSubject {
 public:
  static constexpr uint32_t kHeads = 2;

  GeneralSubject(KvLayout layout, const ProfileRequest& request, RunOn where);

  [[nodiscard]] const KvLayout& layout() const { return layout_; }
  [[nodiscard]] const CodecProfile& profile() const { return codec_->profiles()[0]; }
  [[nodiscard]] const BlockCodec& codec() const { return *codec_; }
  [[nodiscard]] const CellCodec& cell(uint32_t head) const { return codec_->cell(0, head); }
  [[nodiscard]] const cuda::GeneralPlan& plan() const { return plan_; }
  [[nodiscard]] GeneralRunner& runner() const { return *runner_; }
  // What the oracle reads in a cell.
  [[nodiscard]] ReferenceCell Parse(uint32_t head, std::span<const std::byte> cell,
                                    uint32_t num_tokens) const;

 private:
  KvLayout layout_;
  std::unique_ptr<BlockCodec> codec_;
  std::unique_ptr<GeneralRunner> runner_;
  cuda::GeneralPlan plan_;
  std::vector<Matrix> projections_;  // of each head
};

[[nodiscard]] KvLayout LayoutOf(const GeneralShape& shape);

// Profiles with dense projections or bases take long to make for wide heads.
[[nodiscard]] bool IsDense(const ProfileRequest& request);

// A profile, and where it runs.
struct GeneralCase {
  NamedRequest profile;
  RunOn where;
};
inline void PrintTo(const GeneralCase& c, std::ostream* out) { *out << c.profile.name; }
[[nodiscard]] std::vector<GeneralCase> GeneralCases(RunOn where);

#define SKETCHKV_GENERAL_SUITES(Suite)                                                     \
  INSTANTIATE_TEST_SUITE_P(OnHost, Suite, ::testing::ValuesIn(GeneralCases(RunOn::kHost)), \
                           [](const auto& info) { return info.param.profile.name; });      \
  INSTANTIATE_TEST_SUITE_P(OnCard, Suite, ::testing::ValuesIn(GeneralCases(RunOn::kCard)), \
                           [](const auto& info) { return info.param.profile.name; })

}  // namespace sketchkv::testing
