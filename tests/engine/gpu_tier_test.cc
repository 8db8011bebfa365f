#include "service/engine/gpu_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/status_macros.h"
#include "service/pool/arena_tier.h"
#include "tests/testing/engine_fixture.h"
#include "tests/testing/fake_gpu.h"

namespace sketchkv {
namespace {

constexpr uint32_t kBlockTokens = 16;
constexpr uint32_t kBlocks = 6;
constexpr KvLayout kLayout = {.num_layers = 2,
                              .num_kv_heads = 2,
                              .head_dim = 16,
                              .value_dim = 24,
                              .block_tokens = kBlockTokens,
                              .key_dtype = DType::kFp32,
                              .value_dtype = DType::kFp32};

// An engine with a card that has room for some blocks of the model, and one without a card that is
// asked the same.
struct GpuEngine {
  explicit GpuEngine(size_t blocks_on_gpu)
      : model(*models.Register(0, "m", kLayout, {LayerProfileRequest{.profile = {.name = "qjl"}}})),
        gpu(std::max<size_t>(1, blocks_on_gpu) * Page(model->shape.slot_bytes)),
        pool({.budget_bytes = size_t{16} << 20}, &clock,
             std::make_unique<ArenaTier>(gpu.TierMemory())),
        tier(&gpu, &pool, &models),
        engine(&models, &pool, &executor, &tier),
        host_pool({.budget_bytes = size_t{16} << 20}, &clock),
        host(&models, &host_pool, &executor) {}

  static size_t Page(size_t slot_bytes) { return (slot_bytes + 4095) / 4096 * 4096; }

  // A chain of blocks first, first + 1, ...; the last has `last_tokens`.
  void PutChain(uint64_t first, uint32_t blocks, uint32_t last_tokens = kBlockTokens) {
    for (uint32_t i = 0; i < blocks; ++i) {
      const uint32_t tokens = i + 1 == blocks ? last_tokens : kBlockTokens;
      const RawPart part = RandomPart(*model, {}, tokens, first + i);
      for (Engine* to : {&engine, &host}) {
        Engine::PutRequest request{.model = model,
                                   .hash = TestHash(first + i),
                                   .part = part.layout,
                                   .payload = Bytes(part.payload)};
        if (i > 0) request.parent = TestHash(first + i - 1);
        EXPECT_THAT(to->Put(0, request), IsOk());
      }
    }
  }
  AttentionItem Item(uint64_t tip) const {
    AttentionItem item;
    item.tip = TestHash(tip);
    item.layer = 1;
    item.head_count = 2;
    item.num_query_tokens = 3;
    item.options.softmax_scale = 0.25f;
    return item;
  }
  // Asks both engines the same and compares.
  void ExpectSame(const std::vector<AttentionItem>& items) {
    AttentionRequest request{.model = model, .queries_per_kv_head = 2, .items = items};
    std::vector<float> queries(items.size() * 3 * 2 * 2 * kLayout.head_dim);
    for (size_t i = 0; i < queries.size(); ++i) queries[i] = std::sin(0.7f * i);
    request.queries = queries;
    std::vector<float> ours(AnswerFloats(request), std::nanf(""));
    std::vector<float> theirs(ours);
    ASSERT_THAT(engine.Attend(0, request, ours), IsOk());
    ASSERT_THAT(host.Attend(0, request, theirs), IsOk());
    for (size_t i = 0; i < ours.size(); ++i) {
      if (theirs[i] == -INFINITY) {
        ASSERT_EQ(ours[i], -INFINITY) << i;
      } else {
        // Weights are rounded relative to the largest of what is attended in one go.
        ASSERT_NEAR(ours[i], theirs[i], 3e-2) << i;
      }
    }
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto our_scores, engine.Score(0, request));
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto their_scores, host.Score(0, request));
    for (size_t i = 0; i < items.size(); ++i) {
      ASSERT_EQ(our_scores[i].token_begin, their_scores[i].token_begin);
      ASSERT_EQ(our_scores[i].logits, their_scores[i].logits);
    }
  }

  FakeClock clock;
  ModelRegistry models{Isa::kScalar};
  std::shared_ptr<const Model> model;
  testing::FakeGpu gpu;
  BlockPool pool;
  GpuTier tier;
  ManualExecutor executor;
  Engine engine;
  BlockPool host_pool;
  Engine host;
};

TEST(GpuTierTest, BlocksOnTheCardAreAnsweredThere) {
  GpuEngine f(kBlocks);
  f.PutChain(1, kBlocks, 7);
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, kBlocks);
  f.ExpectSame({f.Item(kBlocks)});
  EXPECT_EQ(f.gpu.attentions, 1);
  EXPECT_EQ(f.gpu.scores, 1);
}

TEST(GpuTierTest, QueryOverBothTiersIsThatOverOne) {
  for (const std::vector<bool>& on_gpu :
       std::vector<std::vector<bool>>{{true, false, false, false, false, false},
                                      {false, false, false, true, true, true},
                                      {true, false, true, true, false, true},
                                      {false, true, false, true, true, false}}) {
    GpuEngine f(kBlocks);
    size_t put = 0;
    f.gpu.takes = [&](const Model&) { return on_gpu[put++]; };
    f.PutChain(1, kBlocks, 7);
    f.gpu.takes = [](const Model&) { return true; };
    ASSERT_EQ(f.pool.GetStats().gpu_blocks, std::count(on_gpu.begin(), on_gpu.end(), true));
    AttentionItem part = f.Item(kBlocks);
    part.token_begin = 5;
    part.token_end = 70;
    f.ExpectSame({f.Item(kBlocks), part, f.Item(3)});
    EXPECT_EQ(f.gpu.attentions, 1);
  }
}

TEST(GpuTierTest, ShortBlocksInAListEndARun) {
  GpuEngine f(2 * kBlocks);
  f.PutChain(1, 2, 5);
  f.PutChain(11, 3);
  AttentionItem item = f.Item(0);
  item.tip.reset();
  item.blocks = {TestHash(1), TestHash(2), TestHash(11), TestHash(12), TestHash(2), TestHash(13)};
  item.token_begin = 3;
  f.ExpectSame({item});
}

TEST(GpuTierTest, RangeWithoutTokensIsEmpty) {
  GpuEngine f(kBlocks);
  f.PutChain(1, 2);
  AttentionItem item = f.Item(2);
  item.token_begin = 32;
  f.ExpectSame({item, f.Item(1)});
}

TEST(GpuTierTest, ModelsThatTheCardDoesNotTakeStayOnTheHost) {
  GpuEngine f(kBlocks);
  f.gpu.takes = [](const Model&) { return false; };
  f.PutChain(1, 2);
  f.ExpectSame({f.Item(2)});
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, 0);
  EXPECT_EQ(f.gpu.attentions, 0);
}

TEST(GpuTierTest, HostAnswersOnceTheCardFails) {
  GpuEngine f(kBlocks);
  f.PutChain(1, kBlocks);
  f.ExpectSame({f.Item(kBlocks)});
  f.gpu.Break();
  f.ExpectSame({f.Item(kBlocks)});
  EXPECT_TRUE(f.tier.failed());
  EXPECT_EQ(f.tier.GetStats().lost_blocks, 0);  // all are on the host too
  f.PutChain(21, 2);
  f.ExpectSame({f.Item(22), f.Item(kBlocks)});
}

TEST(GpuTierTest, MaintainNoticesThatTheCardHasFailed) {
  GpuEngine f(kBlocks);
  f.PutChain(1, 2);
  f.tier.Maintain();
  EXPECT_FALSE(f.tier.failed());
  f.gpu.Break();
  f.tier.Maintain();
  EXPECT_TRUE(f.tier.failed());
  EXPECT_THAT(f.tier.GetStats().why, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, 0);
}

TEST(GpuTierTest, PutGoesOnWhenTheCardFailsMeanwhile) {
  GpuEngine f(kBlocks);
  f.PutChain(1, 1);
  f.gpu.Break();
  f.PutChain(11, 2);
  EXPECT_TRUE(f.tier.failed());
  f.ExpectSame({f.Item(12)});
}

TEST(GpuTierTest, BlocksInUseAreCopiedToTheCard) {
  GpuEngine f(kBlocks);
  f.gpu.takes = [](const Model&) { return false; };
  f.PutChain(1, kBlocks);
  f.gpu.takes = [](const Model&) { return true; };
  f.ExpectSame({f.Item(3)});
  f.tier.Maintain();
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, 3);
  EXPECT_EQ(f.pool.GetStats().promoted_total, 3);
  f.ExpectSame({f.Item(kBlocks)});
  f.tier.Maintain();
  EXPECT_EQ(f.pool.GetStats().gpu_blocks, kBlocks);
  f.ExpectSame({f.Item(kBlocks)});
}

TEST(GpuTierTest, LeasedChainIsAnsweredOnTheCardOnceItIsThere) {
  GpuEngine f(kBlocks);
  f.gpu.takes = [](const Model&) { return false; };
  f.PutChain(1, 2);
  f.gpu.takes = [](const Model&) { return true; };
  const std::vector<BlockHash> chain = {TestHash(1), TestHash(2)};
  AttentionRequest request{.model = f.model, .queries_per_kv_head = 1};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto lookup,
                                f.engine.Lookup(0, *f.model, chain, std::chrono::seconds(60)));
  AttentionItem item = f.Item(0);
  item.tip.reset();
  item.lease_id = lookup.lease->id;
  request.items = {item};
  const std::vector<float> queries(3 * 2 * kLayout.head_dim, 0.5f);
  request.queries = queries;
  std::vector<float> answer(AnswerFloats(request));
  ASSERT_THAT(f.engine.Attend(0, request, answer), IsOk());
  EXPECT_EQ(f.gpu.attentions, 0);
  f.tier.Maintain();
  f.clock.Advance(std::chrono::milliseconds(100));
  ASSERT_THAT(f.engine.Attend(0, request, answer), IsOk());
  EXPECT_EQ(f.gpu.attentions, 1);
}

TEST(GpuTierTest, PromotionDoesNotDropABlockThatIsPutAnewMeanwhile) {
  GpuEngine f(kBlocks);
  f.gpu.takes = [](const Model&) { return false; };
  f.PutChain(1, 2);
  const auto put_anew = [&f] {
    f.gpu.on_copy_up = nullptr;
    ASSERT_EQ(f.engine.Delete(0, *f.model, std::vector<BlockHash>{TestHash(2)}), 1);
    const RawPart other = RandomPart(*f.model, {}, kBlockTokens, 99);
    SKETCHKV_ASSERT_OK(f.engine.Put(0, {.model = f.model,
                                        .hash = TestHash(2),
                                        .parent = TestHash(1),
                                        .part = other.layout,
                                        .payload = Bytes(other.payload)}));
  };
  AttentionRequest request{.model = f.model, .queries_per_kv_head = 2, .items = {f.Item(2)}};
  const std::vector<float> queries(3 * 2 * 2 * kLayout.head_dim, 0.5f);
  request.queries = queries;
  std::vector<float> answer(AnswerFloats(request));
  f.gpu.takes = [](const Model&) { return true; };
  ASSERT_THAT(f.engine.Attend(0, request, answer), IsOk());
  f.gpu.takes = [](const Model&) { return false; };
  f.gpu.on_copy_up = put_anew;  // of block 1, while block 2 waits
  f.tier.Maintain();
  EXPECT_EQ(f.pool.GetStats().promoted_total, 1);
  EXPECT_EQ(f.pool.GetStats().discarded_total, 0);
  EXPECT_THAT(f.engine.Attend(0, request, answer), IsOk());
}

TEST(GpuTierTest, DamagedBlockIsDroppedInsteadOfPromoted) {
  GpuEngine f(kBlocks);
  f.gpu.takes = [](const Model&) { return false; };
  f.PutChain(1, 1);
  f.gpu.takes = [](const Model&) { return true; };
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.fingerprint = f.model->fingerprint, .hash = TestHash(1)}));
    const_cast<std::byte&>(pins[0].bytes[0]) ^= std::byte{1};
  }
  AttentionRequest request{.model = f.model, .queries_per_kv_head = 2, .items = {f.Item(1)}};
  const std::vector<float> queries(3 * 2 * 2 * kLayout.head_dim, 0.5f);
  request.queries = queries;
  std::vector<float> answer(AnswerFloats(request));
  ASSERT_THAT(f.engine.Attend(0, request, answer), IsOk());  // attention looks at no checksum
  f.tier.Maintain();
  EXPECT_THAT(f.engine.Attend(0, request, answer), StatusIs(absl::StatusCode::kNotFound));
}

TEST(GpuTierTest, ScrubDropsABlockWhoseCopyOnTheCardIsDamaged) {
  GpuEngine f(kBlocks);
  f.PutChain(1, 1);
  f.PutChain(11, 1);
  uint64_t cursor = 0;
  EXPECT_EQ(f.engine.Scrub(&cursor, 10), 2);
  f.ExpectSame({f.Item(1), f.Item(11)});
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.fingerprint = f.model->fingerprint, .hash = TestHash(1)}));
    pins[0].gpu[f.model->codec->cell_offset(1, 1)] ^= std::byte{1};
  }
  cursor = 0;
  EXPECT_EQ(f.engine.Scrub(&cursor, 10), 2);
  EXPECT_EQ(f.pool.GetStats().discarded_total, 1);
  f.ExpectSame({f.Item(11)});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const ReadPins other,
      f.pool.Pin({.fingerprint = f.model->fingerprint, .hash = TestHash(11)}));
  EXPECT_THAT(f.pool.Pin({.fingerprint = f.model->fingerprint, .hash = TestHash(1)}),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST(GpuTierTest, ScrubNoticesThatTheCardHasFailedAndDropsNothing) {
  GpuEngine f(kBlocks);
  f.PutChain(1, 2);
  f.gpu.Break();
  uint64_t cursor = 0;
  EXPECT_EQ(f.engine.Scrub(&cursor, 10), 2);
  EXPECT_TRUE(f.tier.failed());
  EXPECT_EQ(f.pool.GetStats().discarded_total, 0);
  f.ExpectSame({f.Item(2)});
}

}  // namespace
}  // namespace sketchkv
