#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <utility>

#include "tests/kernels/codec_testing.h"
#include "tests/testing/status_matchers.h"

// A client may write to what it hands over while it is encoded.
namespace sketchkv::testing {
namespace {

constexpr uint32_t kTokens = 64, kDim = 128;
constexpr uint16_t kNan = 0x7FC0, kOne = 0x3F80;

// Writes NaN and 1 in turn to the last number of `rows`.
class Writer {
 public:
  explicit Writer(std::vector<uint16_t>* rows)
      : last_(rows->back()), thread_([this] {
          while (!done_.load(std::memory_order_relaxed)) {
            last_.store(kNan, std::memory_order_relaxed);
            last_.store(kOne, std::memory_order_relaxed);
          }
        }) {}
  ~Writer() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic_ref<uint16_t> last_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

TEST(ChangingInputTest, WhatIsStoredIsWhatWasChecked) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the race is what is tested";
#endif
  const KvLayout layout = Layout(kDim, kDim, kTokens);
  // Raw rows are soonest done, and have the most to lose.
  const std::pair<const char*, int> profiles[] = {
      {"raw", 5000}, {"qjl", 200}, {"qjl3p", 200}, {"klt", 50}};
  for (const auto& [name, rounds] : profiles) {
    for (Isa isa : SupportedIsas()) {
      SCOPED_TRACE(::testing::Message() << name << " " << std::string(IsaName(isa)));
      const auto codec = MakeCodec(layout, Resolve(Named(name), layout), isa);
      const CellCodec& cell = codec->cell(0, 0);
      std::vector<uint16_t> rows(size_t{kTokens} * kDim, kOne);
      const RowsView view{reinterpret_cast<const std::byte*>(rows.data()), 2 * kDim};
      std::vector<std::byte> bytes(cell.cell_bytes());
      const Writer writer(&rows);
      for (int i = 0; i < rounds; ++i) {
        if (!cell.Encode(view, view, kTokens, bytes).ok()) continue;
        SKETCHKV_ASSERT_OK(cell.Validate(bytes, kTokens));
      }
    }
  }
}

}  // namespace
}  // namespace sketchkv::testing
