// A card's attention, scores and stored bytes, against the host's.
#include <cstring>
#include <thread>
#include <vector>

#include "tests/gpu/gpu_engine_fixture.h"

namespace sketchkv {
namespace {

class GpuEngineTest : public GpuEngineFixture {};

TEST_P(GpuEngineTest, AnswersAreThoseOfTheHost) {
  PutChain(1, 1000);
  PutChain(10001, 17);
  ASSERT_EQ(pool_->GetStats().gpu_blocks, pool_->GetStats().blocks);
  ExpectSame({Item(1, 0), Item(10001, 1), Item(1, 2, 5)}, 1);
  AttentionItem part = Item(1, 1, 3);
  part.head_begin = 1;
  part.head_count = 2;
  part.token_begin = 77;
  part.token_end = 801;
  part.options.logit_softcap = 2.0f;
  ExpectSame({part}, 2);
  ExpectSameScores(part, 3);
  ExpectSameScores(Item(1, 2, 5), 4);
}

TEST_P(GpuEngineTest, LeasedChainsKeepTheirTables) {
  PutChain(1, 600);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lookup,
                                engine_->Lookup(0, *model_, chain_[1], std::chrono::seconds(60)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto host_lookup,
                                host_->Lookup(0, *model_, chain_[1], std::chrono::seconds(60)));
  for (uint64_t i = 0; i < 4; ++i) {
    AttentionItem item = Item(1, i % 3);
    item.tip.reset();
    AttentionRequest request{.model = model_, .queries_per_kv_head = kGroup};
    item.lease_id = lookup.lease->id;
    request.items = {item};
    const std::vector<float> queries = QueriesFor(request, i);
    request.queries = queries;
    std::vector<float> ours(AnswerFloats(request)), theirs(ours);
    ASSERT_THAT(engine_->Attend(0, request, ours), IsOk());
    request.items[0].lease_id = host_lookup.lease->id;
    ASSERT_THAT(host_->Attend(0, request, theirs), IsOk());
    for (size_t j = 0; j < ours.size(); ++j) {
      ASSERT_NEAR(ours[j], theirs[j], kLogitRounding * 2) << i << " " << j;
    }
  }
}

TEST_P(GpuEngineTest, CallsOfManyThreadsAreAnsweredTogether) {
  for (uint64_t s = 0; s < 4; ++s) PutChain(1 + 1000 * s, 300 + 40 * s);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 20; ++i) {
        ExpectSame({Item(1 + 1000 * ((t + i) % 4), i % 3), Item(1 + 1000 * (i % 4), t % 3, 2)},
                   100 * t + i);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(GpuEngineTest, BytesComeBackFromTheCardAsTheyWere) {
  PutChain(1, 100);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const ReadPins pins,
      pool_->PinChain({.fingerprint = model_->fingerprint, .hash = chain_[1].back()}));
  for (size_t i = 0; i < pins.size(); ++i) {
    std::vector<std::byte> copy(pins[i].bytes.size());
    ASSERT_THAT(gpu_->CopyToHost({pins[i].gpu, copy.size()}, copy.data()), IsOk());
    EXPECT_EQ(std::memcmp(copy.data(), pins[i].bytes.data(), copy.size()), 0) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Tuned, GpuEngineTest, kTuned, NameOf);
INSTANTIATE_TEST_SUITE_P(General, GpuEngineTest, kGeneral, NameOf);

}  // namespace
}  // namespace sketchkv
