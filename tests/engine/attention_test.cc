#include "service/engine/attention.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/base/status_macros.h"
#include "tests/testing/engine_fixture.h"

namespace sketchkv {
namespace {

// Codecs round queries and weights to integers; how well is the codec tests' matter. What is asked
// here is whether everything goes where it belongs: another row or token is off by far more.
constexpr double kRounding = 3e-2;

constexpr uint32_t kDim = 16;
constexpr uint32_t kValueDim = 24;

KvLayout SmallLayout(uint32_t block_tokens) {
  return {.num_layers = 2,
          .num_kv_heads = 3,
          .head_dim = kDim,
          .value_dim = kValueDim,
          .block_tokens = block_tokens,
          .key_dtype = DType::kFp32,
          .value_dtype = DType::kFp32};
}

std::vector<float> RandomFloats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> floats(count);
  for (float& x : floats) x = normal(random);
  return floats;
}

// Of one item.
struct Result {
  std::vector<float> out;  // [num_query_tokens, query heads, value_dim]
  std::vector<float> lse;  // [num_query_tokens, query heads]
};

absl::StatusOr<std::vector<Result>> Attend(Engine* engine, uint32_t tenant,
                                           const AttentionRequest& request) {
  // What no unit writes stays NaN.
  std::vector<float> answer(AnswerFloats(request), std::nanf(""));
  SKETCHKV_RETURN_IF_ERROR(engine->Attend(tenant, request, answer));
  std::vector<Result> results;
  auto next = answer.begin();
  for (const AttentionItem& item : request.items) {
    const size_t rows =
        size_t{item.num_query_tokens} * item.head_count * request.queries_per_kv_head;
    const auto lse = next + rows * request.model->layout().value_dim;
    results.push_back({{next, lse}, {lse, lse + rows}});
    next = lse + rows;
  }
  return results;
}

// A chain of blocks 1, 2, ... and the numbers in it, as decoded from the store.
struct Chain {
  EngineFixture f;
  std::shared_ptr<const Model> model;
  uint32_t num_blocks;
  // [layer][head][token][channel]
  std::vector<std::vector<std::vector<std::vector<double>>>> keys, values;

  Chain(const std::string& profile, uint32_t block_tokens, uint32_t blocks, uint32_t last_tokens)
      : num_blocks(blocks) {
    model = f.Register("m", SmallLayout(block_tokens), profile);
    keys.assign(2, std::vector<std::vector<std::vector<double>>>(3));
    values = keys;
    for (uint32_t b = 1; b <= blocks; ++b) {
      const uint32_t tokens = b == blocks ? last_tokens : block_tokens;
      EXPECT_THAT(f.Put(model, b, b - 1, RandomPart(*model, {}, tokens, b)), IsOk());
      const auto part =
          GetPart(f.engine, {.model = model, .hash = TestHash(b), .dtype = DType::kFp32});
      EXPECT_THAT(part, IsOk());
      Append(*part);
    }
  }
  void Append(const Part& part) {
    const RawPartFormat format(model->layout(), part.layout.range, part.layout.num_tokens,
                               RawOrder::kNhd);
    const std::string payload = part.payload.ToString();
    const std::byte* base = Bytes(payload).data();
    const auto read = [&](RowsView rows, uint32_t token, uint32_t dim) {
      std::vector<float> row(dim);
      std::memcpy(row.data(), rows.data + token * rows.stride_bytes, dim * sizeof(float));
      return std::vector<double>(row.begin(), row.end());
    };
    for (uint32_t layer = 0; layer < 2; ++layer) {
      for (uint32_t head = 0; head < 3; ++head) {
        for (uint32_t t = 0; t < part.layout.num_tokens; ++t) {
          keys[layer][head].push_back(read(format.Keys(base, layer, head), t, kDim));
          values[layer][head].push_back(read(format.Values(base, layer, head), t, kValueDim));
        }
      }
    }
  }
  AttentionItem Item(uint32_t layer) const {
    AttentionItem item;
    item.tip = TestHash(num_blocks);
    item.layer = layer;
    item.head_count = 3;
    item.num_query_tokens = 2;
    item.options.softmax_scale = 0.25f;
    return item;
  }
  // Compares an item's result, all rows, with attention in double over the decoded numbers.
  void ExpectNear(const AttentionItem& item, uint32_t group, std::span<const float> queries,
                  const Result& result, double bound) const {
    const uint32_t query_heads = item.head_count * group;
    for (uint32_t row = 0; row < item.num_query_tokens * query_heads; ++row) {
      const uint32_t head = item.head_begin + row % query_heads / group;
      const auto& all_keys = keys[item.layer][head];
      const size_t end =
          std::min<size_t>(item.token_end.value_or(all_keys.size()), all_keys.size());
      const size_t begin = std::min<size_t>(item.token_begin, end);
      const std::vector<double> query(queries.begin() + row * kDim,
                                      queries.begin() + (row + 1) * kDim);
      const DoubleAttention expected = AttendInDouble(
          {all_keys.begin() + begin, all_keys.begin() + end},
          {values[item.layer][head].begin() + begin, values[item.layer][head].begin() + end}, query,
          item.options.softmax_scale, item.options.logit_softcap, kValueDim);
      if (begin == end) {
        EXPECT_EQ(result.lse[row], -std::numeric_limits<float>::infinity());
      } else {
        EXPECT_NEAR(result.lse[row], expected.lse, bound);
      }
      for (uint32_t c = 0; c < kValueDim; ++c) {
        EXPECT_NEAR(result.out[row * kValueDim + c], expected.out[c], bound) << row << " " << c;
      }
    }
  }
};

TEST(EngineAttentionTest, GroupedQueriesLayersHeadsAndTokensGoWhereTheyBelong) {
  for (const std::string profile : {"raw", "qjl", "qjl-paper", "qjl2p", "qjl3p", "qjl4p", "klt"}) {
    Chain chain(profile, 16, 3, 9);
    AttentionRequest request{.model = chain.model, .queries_per_kv_head = 4};
    AttentionItem whole = chain.Item(0), part = chain.Item(1);
    part.head_begin = 1;
    part.head_count = 2;
    part.num_query_tokens = 1;
    part.token_begin = 7;
    part.token_end = 34;
    request.items = {whole, part};
    const size_t first = 2 * 12 * kDim, second = 8 * kDim;
    const std::vector<float> queries = RandomFloats(first + second, 5);
    request.queries = queries;
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto results, Attend(&chain.f.engine, 0, request));
    ASSERT_EQ(results.size(), 2);
    chain.ExpectNear(whole, 4, std::span(queries).first(first), results[0], kRounding);
    chain.ExpectNear(part, 4, std::span(queries).subspan(first), results[1], kRounding);
  }
}

TEST(EngineAttentionTest, TipListAndLeaseGiveTheSameAnswer) {
  Chain chain("qjl", 16, 4, 16);
  const std::vector<float> queries = RandomFloats(2 * 3 * kDim, 6);
  AttentionRequest request{.model = chain.model, .queries_per_kv_head = 1, .queries = queries};
  AttentionItem by_tip = chain.Item(1), by_list = chain.Item(1), by_lease = chain.Item(1);
  by_list.tip.reset();
  std::vector<BlockHash> hashes;
  for (uint32_t b = 1; b <= 4; ++b) hashes.push_back(TestHash(b));
  by_list.blocks = hashes;
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto lookup, chain.f.engine.Lookup(0, *chain.model, hashes, std::chrono::seconds(5)));
  by_lease.tip.reset();
  by_lease.lease_id = lookup.lease->id;
  std::vector<Result> results;
  for (const AttentionItem& item : {by_tip, by_list, by_lease}) {
    request.items = {item};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(auto one, Attend(&chain.f.engine, 0, request));
    results.push_back(one[0]);
  }
  EXPECT_EQ(results[0].out, results[1].out);
  EXPECT_EQ(results[0].lse, results[2].lse);
  EXPECT_EQ(results[0].out, results[2].out);
  // A lease keeps its blocks after a delete; a tip does not.
  EXPECT_EQ(chain.f.engine.Delete(0, *chain.model, hashes), 4);
  request.items = {by_lease};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto leased, Attend(&chain.f.engine, 0, request));
  EXPECT_EQ(leased[0].out, results[0].out);
  request.items = {by_tip};
  EXPECT_THAT(Attend(&chain.f.engine, 0, request), StatusIs(absl::StatusCode::kNotFound));
}

// Items of one call may be of different sequences, lists, leases and windows.
TEST(EngineAttentionTest, ItemsOfSeveralSequencesDoNotMix) {
  Chain chain("qjl", 16, 3, 16);
  SKETCHKV_ASSERT_OK(chain.f.Put(chain.model, 21, 0, RandomPart(*chain.model, {}, 16, 21)));
  SKETCHKV_ASSERT_OK(chain.f.Put(chain.model, 22, 21, RandomPart(*chain.model, {}, 9, 22)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto lookup,
      chain.f.engine.Lookup(0, *chain.model, std::vector{TestHash(1)}, std::chrono::seconds(5)));
  std::vector<AttentionItem> items(7, chain.Item(0));
  items[1].tip = TestHash(22);
  items[2].token_begin = 20;
  items[3].tip.reset();
  items[3].blocks = {TestHash(21), TestHash(3)};
  items[4].tip.reset();
  items[4].blocks = {TestHash(21)};
  items[5].tip.reset();
  items[5].lease_id = lookup.lease->id;
  items[6].token_end = 30;
  const size_t per_item = 2 * 3 * kDim;
  const std::vector<float> queries = RandomFloats(items.size() * per_item, 30);
  AttentionRequest batch{
      .model = chain.model, .queries_per_kv_head = 1, .items = items, .queries = queries};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto together, Attend(&chain.f.engine, 0, batch));
  for (size_t i = 0; i < items.size(); ++i) {
    AttentionRequest one{.model = chain.model,
                         .queries_per_kv_head = 1,
                         .items = {items[i]},
                         .queries = std::span(queries).subspan(i * per_item, per_item)};
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto alone, Attend(&chain.f.engine, 0, one));
    EXPECT_EQ(together[i].out, alone[0].out) << i;
    EXPECT_EQ(together[i].lse, alone[0].lse) << i;
    for (size_t j = 0; j < i; ++j) EXPECT_NE(together[i].lse, together[j].lse) << i << " " << j;
  }
}

// 300 query rows a kv head: more than one unit takes.
TEST(EngineAttentionTest, ManyQueryRowsGoWhereTheyBelong) {
  Chain chain("qjl3p", 16, 2, 16);
  AttentionItem item = chain.Item(1);
  item.num_query_tokens = 100;
  const std::vector<float> queries = RandomFloats(size_t{100} * 9 * kDim, 5);
  AttentionRequest request{
      .model = chain.model, .queries_per_kv_head = 3, .items = {item}, .queries = queries};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto results, Attend(&chain.f.engine, 0, request));
  chain.ExpectNear(item, 3, queries, results[0], kRounding);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto scores, chain.f.engine.Score(0, request));
  for (const size_t row : {0, 299, 300, 767, 768, 899}) {
    const auto& keys = chain.keys[1][row % 9 / 3];
    for (size_t t = 0; t < 32; ++t) {
      double dot = 0;
      for (uint32_t c = 0; c < kDim; ++c) dot += keys[t][c] * queries[row * kDim + c];
      EXPECT_NEAR(scores[0].logits[row * 32 + t], 0.25 * dot, kRounding) << row;
    }
  }
}

TEST(EngineAttentionTest, ContextsLongerThanASplitMergeToTheSame) {
  Chain chain("raw", 512, 18, 100);  // 8,804 tokens: three splits
  const std::vector<float> queries = RandomFloats(2 * 3 * kDim, 7);
  AttentionRequest request{.model = chain.model, .queries_per_kv_head = 1, .queries = queries};
  AttentionItem item = chain.Item(0);
  item.token_begin = 3000;
  request.items = {item};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto results, Attend(&chain.f.engine, 0, request));
  chain.ExpectNear(item, 1, queries, results[0], 1e-3);
}

// Multi-head latent attention: no value bytes travel or are stored; the values are in the keys.
TEST(EngineAttentionTest, ValuesThatAreAPrefixOfTheKeysAreAttendedFromThere) {
  EngineFixture f;
  KvLayout layout = SmallLayout(16);
  layout.head_dim = 40;
  layout.value_source = ValueSource::kKeyPrefix;
  const auto model = f.Register("mla", layout, "raw");
  EXPECT_EQ(model->raw_block_bytes(), 2 * 3 * 16 * 40 * 4);
  const RawPart part = RandomPart(*model, {}, 16, 1);
  SKETCHKV_ASSERT_OK(f.Put(model, 1, 0, part));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const Part back,
      GetPart(f.engine, {.model = model, .hash = TestHash(1), .dtype = DType::kFp32}));
  EXPECT_EQ(back.payload, part.payload);

  const std::vector<float> queries = RandomFloats(3 * 40, 13);
  AttentionRequest request{.model = model, .queries_per_kv_head = 1, .queries = queries};
  AttentionItem item{.tip = TestHash(1), .layer = 1, .head_count = 3, .num_query_tokens = 1};
  item.options.softmax_scale = 0.2f;
  request.items = {item};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto results, Attend(&f.engine, 0, request));
  const RawPartFormat format(layout, part.layout.range, 16, RawOrder::kNhd);
  for (uint32_t head = 0; head < 3; ++head) {
    std::vector<std::vector<double>> keys, values;
    for (uint32_t t = 0; t < 16; ++t) {
      const RowsView rows = format.Keys(Bytes(part.payload).data(), 1, head);
      std::vector<float> row(40);
      std::memcpy(row.data(), rows.data + t * rows.stride_bytes, 40 * sizeof(float));
      keys.emplace_back(row.begin(), row.end());
      values.emplace_back(row.begin(), row.begin() + kValueDim);
    }
    const std::vector<double> query(queries.begin() + head * 40, queries.begin() + (head + 1) * 40);
    const DoubleAttention expected = AttendInDouble(keys, values, query, 0.2, 0, kValueDim);
    EXPECT_NEAR(results[0].lse[head], expected.lse, 1e-4);
    for (uint32_t c = 0; c < kValueDim; ++c) {
      EXPECT_NEAR(results[0].out[head * kValueDim + c], expected.out[c], 1e-4);
    }
  }
}

TEST(EngineAttentionTest, SoftcapAndEmptyRanges) {
  Chain chain("qjl", 16, 2, 16);
  const std::vector<float> queries = RandomFloats(2 * 3 * kDim, 8);
  AttentionRequest request{.model = chain.model, .queries_per_kv_head = 1, .queries = queries};
  AttentionItem capped = chain.Item(0), empty = chain.Item(0);
  capped.options.logit_softcap = 0.5f;
  request.items = {capped};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto results, Attend(&chain.f.engine, 0, request));
  chain.ExpectNear(capped, 1, queries, results[0], kRounding);
  empty.token_begin = 1000;
  request.items = {empty};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto nothing, Attend(&chain.f.engine, 0, request));
  chain.ExpectNear(empty, 1, queries, nothing[0], 0);
}

TEST(EngineAttentionTest, ScoresAreTheLogitsOfTheDecodedKeys) {
  Chain chain("qjl", 16, 3, 9);
  const std::vector<float> queries = RandomFloats(2 * 6 * kDim, 9);
  AttentionRequest request{.model = chain.model, .queries_per_kv_head = 2, .queries = queries};
  AttentionItem item = chain.Item(1);
  item.token_begin = 5;
  item.token_end = 40;
  item.options.logit_softcap = 2.0f;
  request.items = {item};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto results, chain.f.engine.Score(0, request));
  ASSERT_EQ(results[0].num_tokens, 35);
  EXPECT_EQ(results[0].token_begin, 5);
  for (uint32_t row = 0; row < 12; ++row) {
    const uint32_t head = row % 6 / 2;
    for (uint32_t t = 0; t < 35; ++t) {
      double dot = 0;
      for (uint32_t c = 0; c < kDim; ++c) {
        dot += chain.keys[1][head][t + 5][c] * queries[row * kDim + c];
      }
      EXPECT_NEAR(results[0].logits[row * 35 + t], 2.0 * std::tanh(dot * 0.25 / 2.0), kRounding);
    }
  }
}

TEST(EngineAttentionTest, BadRequestsNameTheFieldAndBothNumbers) {
  Chain chain("qjl", 16, 1, 16);
  const std::vector<float> queries = RandomFloats(2 * 3 * kDim, 10);
  const auto expect = [&](const std::function<void(AttentionRequest*)>& spoil,
                          std::vector<std::string> parts) {
    AttentionRequest request{.model = chain.model, .queries_per_kv_head = 1, .queries = queries};
    request.items = {chain.Item(0)};
    spoil(&request);
    EXPECT_THAT(Attend(&chain.f.engine, 0, request),
                StatusIs(absl::StatusCode::kInvalidArgument, parts));
  };
  expect([](auto* r) { r->queries_per_kv_head = 0; }, {"queries_per_kv_head is 0"});
  expect([](auto* r) { r->queries_per_kv_head = 129; }, {"queries_per_kv_head is 129", "128"});
  expect([](auto* r) { r->items.clear(); }, {"items has 0"});
  expect([](auto* r) { r->items[0].layer = 2; }, {"items[0].layer is 2", "2"});
  expect([](auto* r) { r->items[0].head_begin = 1; }, {"head_begin + head_count is 4", "3"});
  expect([](auto* r) { r->items[0].num_query_tokens = 0; }, {"num_query_tokens is 0"});
  expect([](auto* r) { r->items[0].num_query_tokens = 3; }, {"queries has 384", "576"});
  expect([](auto* r) { r->items[0].lease_id = 4; }, {"2 of tip"});
  expect([](auto* r) { r->items[0].tip.reset(); }, {"0 of tip"});
  expect(
      [](auto* r) {
        r->items[0].token_begin = 9;
        r->items[0].token_end = 3;
      },
      {"token_end is 3", "token_begin is 9"});
  expect([](auto* r) { r->items[0].options.softmax_scale = -1; }, {"softmax_scale is -1"});
  expect([](auto* r) { r->items[0].options.logit_softcap = -2; }, {"logit_softcap is -2"});
  std::vector<float> poisoned = queries;
  poisoned[kDim + 3] = std::numeric_limits<float>::infinity();
  expect([&](auto* r) { r->queries = poisoned; }, {"row 1, channel 3"});
}

TEST(EngineAttentionTest, MissingAncestorsAndForeignLeasesAreNotFound) {
  Chain chain("qjl", 16, 3, 16);
  EXPECT_EQ(chain.f.engine.Delete(0, *chain.model, std::vector{TestHash(2)}), 2);
  const std::vector<float> queries = RandomFloats(2 * 3 * kDim, 11);
  AttentionRequest request{.model = chain.model, .queries_per_kv_head = 1, .queries = queries};
  request.items = {chain.Item(0)};
  EXPECT_THAT(Attend(&chain.f.engine, 0, request), StatusIs(absl::StatusCode::kNotFound));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto lookup,
      chain.f.engine.Lookup(0, *chain.model, std::vector{TestHash(1)}, std::chrono::seconds(5)));
  request.items[0].tip.reset();
  request.items[0].lease_id = lookup.lease->id;
  EXPECT_THAT(Attend(&chain.f.engine, 9, request), StatusIs(absl::StatusCode::kNotFound));
  SKETCHKV_EXPECT_OK(Attend(&chain.f.engine, 0, request));
}

TEST(EngineAttentionTest, CancelledWorkStops) {
  Chain chain("qjl", 16, 1, 16);
  const std::vector<float> queries = RandomFloats(2 * 3 * kDim, 12);
  AttentionRequest request{.model = chain.model, .queries_per_kv_head = 1, .queries = queries};
  request.items = {chain.Item(0)};
  request.patience.cancelled = [] { return true; };
  EXPECT_THAT(Attend(&chain.f.engine, 0, request), StatusIs(absl::StatusCode::kCancelled));
  request.patience.cancelled = nullptr;
  request.patience.deadline = TimePoint::min();
  EXPECT_THAT(Attend(&chain.f.engine, 0, request), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

}  // namespace
}  // namespace sketchkv
