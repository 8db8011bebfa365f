// Attention and gets whose bytes lie in a worker's memory on the card.

#include <cmath>
#include <vector>

#include "tests/engine/gpu_memory_fixture.h"

namespace sketchkv {
namespace {

using Fixture = GpuMemoryFixture;

TEST(GpuMemoryTest, WithoutACardItIsUnavailable) {
  Fixture f;
  Engine::PutRequest put = f.OnGpu(1, RandomPart(*f.model, {}, kLayout.block_tokens, 1));
  EXPECT_THAT(f.host.Put(0, put), StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
  AttentionRequest request = f.Attention(1);
  request.queries_place = Place::kGpu;
  std::vector<float> answer(AnswerFloats(request));
  EXPECT_THAT(f.host.Attend(0, request, answer),
              StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
  EXPECT_THAT(f.host.Score(0, request), StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
  f.PutBoth(1);
  CollectingSink sink;
  std::string into(4096, ' ');
  EXPECT_THAT(f.host.Get(0,
                         {.model = f.model,
                          .hash = TestHash(1),
                          .dtype = DType::kBf16,
                          .into = std::as_writable_bytes(std::span(into)),
                          .into_place = Place::kGpu},
                         &sink),
              StatusIs(absl::StatusCode::kUnavailable, {"no GPU"}));
}

TEST(GpuMemoryTest, ACardThatFailsMeanwhileIsUnavailableAndNothingStaysPinned) {
  Fixture f;
  f.PutBoth(1);
  f.gpu.Break();
  EXPECT_THAT(f.engine.Put(0, f.OnGpu(2, RandomPart(*f.model, {}, kLayout.block_tokens, 2))),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(f.tier.failed());
  EXPECT_THAT(f.engine.Put(0, f.OnGpu(2, RandomPart(*f.model, {}, kLayout.block_tokens, 2))),
              StatusIs(absl::StatusCode::kUnavailable, {"failed"}));
  std::string into(1 << 20, ' ');
  EXPECT_THAT(f.GetToGpu(1, &into), StatusIs(absl::StatusCode::kUnavailable, {"failed"}));
  // What was there alone is lost: a miss, no wrong answer.
  EXPECT_THAT(GetPart(f.engine, {.model = f.model, .hash = TestHash(1)}),
              StatusIs(absl::StatusCode::kNotFound));
  f.ExpectNothingStored();
}

TEST(GpuMemoryTest, AGetWritesToTheCardWhatWouldTravel) {
  Fixture f(1);
  f.PutBoth(1);
  f.PutBoth(2);  // on the host
  for (const uint64_t hash : {1, 2}) {
    const std::string want = f.Decoded(hash);
    std::string into(want.size() + 64, '\x5a');
    SKETCHKV_ASSERT_OK(f.GetToGpu(hash, &into));
    EXPECT_EQ(into.substr(0, want.size()), want);
    EXPECT_EQ(into[want.size()], '\x5a') << "nothing beyond it is written";
    into.resize(want.size() - 1);
    EXPECT_THAT(f.GetToGpu(hash, &into),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         {"gpu_memory.length", std::to_string(want.size() - 1),
                          std::to_string(want.size())}));
  }
  EXPECT_EQ(f.gpu.decodes, 2);
  EXPECT_EQ(f.gpu.copies_down, 0);
}

TEST(GpuMemoryTest, AGetWritesNothingForACallerThatHasGivenUp) {
  Fixture f(1);
  f.PutBoth(1);
  std::string into(1 << 20, '\x5a');
  const std::string before = into;
  const auto get = [&](const Patience& patience) {
    CollectingSink sink;
    return f.engine
        .Get(0,
             {.model = f.model,
              .hash = TestHash(1),
              .dtype = DType::kBf16,
              .into = std::as_writable_bytes(std::span(into)),
              .into_place = Place::kGpu,
              .patience = patience},
             &sink)
        .status();
  };
  for (const bool takes_model : {true, false}) {  // decoded on the card; on the host, and copied
    f.gpu.takes = [takes_model](const Model&) { return takes_model; };
    EXPECT_THAT(get({.deadline = TimePoint::min()}), StatusIs(absl::StatusCode::kDeadlineExceeded));
    EXPECT_THAT(get({.cancelled = [] { return true; }}), StatusIs(absl::StatusCode::kCancelled));
    EXPECT_EQ(into, before) << takes_model;
    SKETCHKV_EXPECT_OK(get({}));
    EXPECT_NE(into, before) << takes_model;
    into = before;
  }
}

TEST(GpuMemoryTest, DamageOnTheCardIsFoundAndTheBlockDropped) {
  Fixture f;
  f.PutBoth(1);
  {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(
        const ReadPins pins,
        f.pool.Pin({.fingerprint = f.model->fingerprint, .hash = TestHash(1)}));
    pins[0].gpu[f.model->codec->cell_offset(1, 0)] ^= std::byte{4};
  }
  std::string into(1 << 20, ' ');
  EXPECT_THAT(f.GetToGpu(1, &into),
              StatusIs(absl::StatusCode::kDataLoss, {"layer 1", "head 0", "checksum"}));
  EXPECT_THAT(f.GetToGpu(1, &into), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(f.pool.GetStats().discarded_total, 1);
}

TEST(GpuMemoryTest, AttentionOnTheCardAnswersAsOnTheHost) {
  Fixture f;
  f.PutBoth(1);
  f.PutBoth(2, 1);
  AttentionRequest request = f.Attention(2);
  const std::vector<float> want = f.Attend(request);
  request.queries_place = request.answer_place = Place::kGpu;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.attentions_in_place, 1);
  EXPECT_EQ(f.gpu.copies_up + f.gpu.copies_down, 0);
  // Either of the two alone goes over the host.
  request.answer_place = Place::kHost;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.copies_down, 1);
  request.answer_place = Place::kGpu;
  request.queries_place = Place::kHost;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.copies_up, 1);
  EXPECT_EQ(f.gpu.attentions_in_place, 1);
  // Scores come back to the host.
  const auto scores = f.engine.Score(0, f.Attention(2));
  request.queries_place = Place::kGpu;
  const auto on_gpu = f.engine.Score(0, request);
  SKETCHKV_ASSERT_OK(on_gpu);
  EXPECT_EQ((*on_gpu)[0].logits, (*scores)[0].logits);
}

TEST(GpuMemoryTest, HostAttendsBlocksOnTheCardAloneOnceThatDoesNotTakeTheModelAnyMore) {
  Fixture f;
  f.PutBoth(1);
  f.PutBoth(2, 1);
  ASSERT_EQ(f.pool.GetStats().stale_blocks, 2);
  f.gpu.takes = [](const Model&) { return false; };
  const AttentionRequest request = f.Attention(2);
  std::vector<float> theirs(AnswerFloats(request));
  SKETCHKV_ASSERT_OK(f.host.Attend(0, request, theirs));
  EXPECT_EQ(f.Attend(request), theirs);
  EXPECT_EQ(f.gpu.attentions, 0);
}

TEST(GpuMemoryTest, AttentionOverBlocksOfBothTiersGoesOverTheHost) {
  Fixture f(1);
  f.PutBoth(1);
  f.PutBoth(2, 1);  // on the host
  AttentionRequest request = f.Attention(2);
  const std::vector<float> want = f.Attend(request);
  request.queries_place = request.answer_place = Place::kGpu;
  EXPECT_EQ(f.Attend(request), want);
  EXPECT_EQ(f.gpu.attentions_in_place, 0);
}

TEST(GpuMemoryTest, BadQueriesOnTheCardAreRefused) {
  Fixture f(1);
  f.PutBoth(1);
  f.PutBoth(2, 1);
  for (const uint64_t tip : {1, 2}) {
    AttentionRequest request = f.Attention(tip);
    request.queries_place = request.answer_place = Place::kGpu;
    f.queries[5] = INFINITY;
    std::vector<float> answer(AnswerFloats(request), 7.0f);
    EXPECT_THAT(f.engine.Attend(0, request, answer),
                StatusIs(absl::StatusCode::kInvalidArgument, {"quer"}));
  }
  AttentionRequest request = f.Attention(1);
  request.queries_place = Place::kGpu;
  request.queries = request.queries.first(8);
  std::vector<float> answer(AnswerFloats(request));
  EXPECT_THAT(f.engine.Attend(0, request, answer),
              StatusIs(absl::StatusCode::kInvalidArgument, {"queries has 32", "768"}));
  EXPECT_FALSE(f.tier.failed());
}

TEST(GpuMemoryTest, AttentionIntoACardThatFailsIsUnavailable) {
  Fixture f;
  f.PutBoth(1);
  AttentionRequest request = f.Attention(1);
  request.queries_place = request.answer_place = Place::kGpu;
  std::vector<float> answer(AnswerFloats(request));
  f.gpu.Break();
  EXPECT_THAT(f.engine.Attend(0, request, answer), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(f.tier.failed());
}

}  // namespace
}  // namespace sketchkv
