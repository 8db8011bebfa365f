// Models whose profiles use tables, over a real connection, against the exact numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/rpc/tables_testing.h"

namespace sketchkv {
namespace {

constexpr uint32_t kDim = 32, kValueDim = 16, kTokens = 16, kBlocks = 3, kHeads = 2, kGroup = 2;

using Rows = std::vector<std::vector<double>>;

// Rows as the tables expect them: the mean and Gaussian coordinates in the basis.
void FillRow(const std::vector<float>& mean, const Basis& basis, std::mt19937_64* random,
             float* row) {
  const size_t dim = mean.size();
  std::normal_distribution<float> normal;
  std::copy(mean.begin(), mean.end(), row);
  for (size_t r = 0; r < basis.rows.size() / dim; ++r) {
    const float x = normal(*random) * basis.group_rms[r / kBasisGroupRows];
    for (size_t c = 0; c < dim; ++c) row[c] += x * basis.rows[r * dim + c];
  }
}

double RmsDifference(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

std::vector<float> FloatsOf(const std::string& bytes) {
  std::vector<float> floats(bytes.size() / sizeof(float));
  std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

// A chain of blocks of a model with tables, whose keys and values are what the tables are for.
struct TabledChain {
  explicit TabledChain(const v1::ProfileRequest& profile) {
    v1::RegisterModelRequest request = RequestWithTables("m", "", UploadOk(&f, UploadMessages()));
    *request.mutable_profiles(0) = profile;
    const grpc::Status status = f.Register(request, &registered);
    EXPECT_TRUE(status.ok()) << status.error_message();
    model = *f.registry.Get(0, "m");
    std::mt19937_64 random(11);
    for (uint64_t hash = 1; hash <= kBlocks; ++hash) {
      RawPart part = RandomPart(*model, {}, kTokens, 1);
      FillPart(&random, &part);
      f.PutOk("m", hash, hash - 1, part);
      parts.push_back(std::move(part));
    }
  }
  void FillPart(std::mt19937_64* random, RawPart* part) const {
    const RawPartFormat format(model->layout(), part->layout.range, kTokens, RawOrder::kNhd);
    auto* base = reinterpret_cast<std::byte*>(part->payload.data());
    const auto fill = [&](RowsView rows, const std::vector<float>& mean, const Basis& basis) {
      for (uint32_t t = 0; t < kTokens; ++t) {
        std::vector<float> row(mean.size());
        FillRow(mean, basis, random, row.data());
        std::memcpy(const_cast<std::byte*>(rows.data) + t * rows.stride_bytes, row.data(),
                    row.size() * sizeof(float));
      }
    };
    for (uint32_t layer = 0; layer < 2; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        const HeadTable& table = heads[layer * kHeads + head];
        fill(format.Keys(base, layer, head), table.key_mean, table.key_basis);
        fill(format.Values(base, layer, head), table.value_mean, table.value_basis);
      }
    }
    part->layout.checksum = PayloadChecksum(Bytes(part->payload));
  }
  // What was put, keys or values of one head over all tokens.
  Rows Exact(uint32_t layer, uint32_t head, bool keys) const {
    Rows rows;
    for (const RawPart& part : parts) {
      const RawPartFormat format(model->layout(), part.layout.range, kTokens, RawOrder::kNhd);
      const auto* base = reinterpret_cast<const std::byte*>(part.payload.data());
      const RowsView view =
          keys ? format.Keys(base, layer, head) : format.Values(base, layer, head);
      for (uint32_t t = 0; t < kTokens; ++t) {
        std::vector<float> row(keys ? kDim : kValueDim);
        std::memcpy(row.data(), view.data + t * view.stride_bytes, row.size() * sizeof(float));
        rows.emplace_back(row.begin(), row.end());
      }
    }
    return rows;
  }
  // A block as it comes back, float32.
  std::vector<float> Get(uint64_t hash) {
    v1::GetRequest get = RpcFixture::GetRequestFor(1, "m", hash);
    get.mutable_format()->set_dtype(v1::DTYPE_FP32);
    get.mutable_format()->set_raw_order(v1::RAW_ORDER_NHD);
    const auto responses = f.Get({get});
    EXPECT_EQ(responses.at(0).status().code(), 0) << responses[0].status().message();
    return FloatsOf(responses[0].payload());
  }
  // Both query heads of both kv heads of `layer`, one query token, over the whole chain.
  v1::AttentionRequest Request(uint32_t layer) const {
    v1::AttentionRequest request;
    request.set_model("m");
    request.set_queries_per_kv_head(kGroup);
    v1::AttentionItem* item = request.add_items();
    item->set_tip(HashBytes(kBlocks));
    item->set_layer(layer);
    item->set_num_query_tokens(1);
    std::mt19937_64 random(layer);
    std::normal_distribution<float> normal;
    std::vector<float> queries(kHeads * kGroup * kDim);
    for (float& x : queries) x = normal(random);
    request.set_queries(queries.data(), queries.size() * sizeof(float));
    return request;
  }

  RpcFixture f;
  const std::vector<HeadTable> heads = RandomHeads(RpcFixture::ModelLayout(), 4);
  v1::Model registered;
  std::shared_ptr<const Model> model;
  std::vector<RawPart> parts;
};

v1::ProfileRequest Profile(const std::string& name) {
  v1::ProfileRequest profile;
  profile.set_name(name);
  return profile;
}

TEST(TablesUseRpcTest, KltIsDescribedAndComesBackCloseToWhatWasPut) {
  TabledChain chain(Profile("klt"));
  ASSERT_EQ(chain.registered.profiles_size(), 1);
  const v1::Profile& profile = chain.registered.profiles(0);
  EXPECT_EQ(profile.key_codec(), v1::KEY_CODEC_CODES);
  EXPECT_EQ(profile.projection(), v1::PROJECTION_BASIS);
  EXPECT_EQ(profile.centering(), v1::CENTERING_TABLE);
  EXPECT_EQ(profile.code_bits(), 0);
  EXPECT_EQ(profile.key_row_bits(), KeyRowBits(chain.heads[0].key_basis, kDim));
  EXPECT_EQ(profile.value_codec(), v1::VALUE_CODEC_BASIS);
  EXPECT_EQ(profile.value_row_bits(), ValueRowBits(chain.heads[0].value_basis, kValueDim));
  // 4 bits of each coordinate: about 0.1 of the coordinates' RMS, which is below 1 a channel.
  for (uint64_t hash = 1; hash <= kBlocks; ++hash) {
    const double error = RmsDifference(chain.Get(hash), FloatsOf(chain.parts[hash - 1].payload));
    EXPECT_LT(error, 0.15);
    EXPECT_GT(error, 0.01) << "codes lose something";
  }
}

TEST(TablesUseRpcTest, KltScoresAndAttendsCloseToTheExactNumbers) {
  TabledChain chain(Profile("klt"));
  for (const uint32_t layer : {0, 1}) {
    const v1::AttentionRequest request = chain.Request(layer);
    const std::vector<float> queries = FloatsOf(request.queries());
    grpc::ClientContext attend_call, score_call;
    v1::AttendResponse attended;
    ASSERT_TRUE(chain.f.attention->Attend(&attend_call, request, &attended).ok());
    v1::ScoreResponse scored;
    ASSERT_TRUE(chain.f.attention->Score(&score_call, request)->Read(&scored));
    const std::vector<float> answer = FloatsOf(attended.payload());
    const std::vector<float> logits = FloatsOf(scored.payload());
    const uint32_t tokens = kBlocks * kTokens, query_heads = kHeads * kGroup;
    ASSERT_EQ(answer.size(), query_heads * (kValueDim + 1));
    ASSERT_EQ(logits.size(), query_heads * tokens);
    const double scale = 1 / std::sqrt(double{kDim});
    for (uint32_t head = 0; head < query_heads; ++head) {
      const Rows keys = chain.Exact(layer, head / kGroup, true);
      const Rows values = chain.Exact(layer, head / kGroup, false);
      const std::vector<double> query(queries.begin() + head * kDim,
                                      queries.begin() + (head + 1) * kDim);
      std::vector<float> exact_logits(tokens);
      for (uint32_t t = 0; t < tokens; ++t) {
        double dot = 0;
        for (uint32_t c = 0; c < kDim; ++c) dot += keys[t][c] * query[c];
        exact_logits[t] = static_cast<float>(dot * scale);
      }
      const std::span<const float> head_logits(logits.data() + head * tokens, tokens);
      EXPECT_LT(RmsDifference(head_logits, exact_logits), 0.2);
      const DoubleAttention exact = AttendInDouble(keys, values, query, scale, 0, kValueDim);
      const std::vector<float> exact_out(exact.out.begin(), exact.out.end());
      const std::span<const float> out(answer.data() + head * kValueDim, kValueDim);
      EXPECT_LT(RmsDifference(out, exact_out), 0.1);
      EXPECT_NEAR(answer[query_heads * kValueDim + head], exact.lse, 0.2);
    }
  }
}

// A mean costs nothing and takes what it explains out of the error.
TEST(TablesUseRpcTest, CentringByTheTableLosesLess) {
  v1::ProfileRequest plain = Profile("qjl2p"), centered = Profile("qjl2p");
  centered.set_centering(v1::CENTERING_TABLE);
  TabledChain with(centered), without(plain);
  EXPECT_EQ(with.registered.slot_bytes(), without.registered.slot_bytes());
  EXPECT_EQ(with.registered.tables_digest().size(), 16);
  EXPECT_EQ(without.registered.tables_digest(), "") << "given, and not used";
  const double error = RmsDifference(with.Get(1), FloatsOf(with.parts[0].payload));
  const double plain_error = RmsDifference(without.Get(1), FloatsOf(without.parts[0].payload));
  EXPECT_LT(error, 0.97 * plain_error);
}

TEST(TablesUseRpcTest, OutlierChannelsMayBeTheTables) {
  v1::ProfileRequest by_block = Profile("qjl3p"), by_table = Profile("qjl3p");
  by_block.set_num_outliers(4);
  by_table.set_num_outliers(4);
  by_table.set_outlier_source(v1::OUTLIER_SOURCE_TABLE);
  TabledChain table(by_table), block(by_block);
  EXPECT_EQ(table.registered.profiles(0).outlier_source(), v1::OUTLIER_SOURCE_TABLE);
  EXPECT_LE(table.registered.slot_bytes(), block.registered.slot_bytes()) << "channels cost bits";
  const std::vector<float> got = table.Get(1), put = FloatsOf(table.parts[0].payload);
  double outliers = 0, others = 0;  // of the first head's first key
  const auto& channels = table.heads[0].outlier_channels;
  for (uint32_t t = 0; t < kTokens; ++t) {
    for (uint32_t c = 0; c < kDim; ++c) {
      const size_t at = size_t{t} * kHeads * kDim + c;
      const bool outlier = std::count(channels.begin(), channels.end(), c) > 0;
      (outlier ? outliers : others) += std::pow(got[at] - put[at], 2);
    }
  }
  EXPECT_LT(outliers / 4, others / (kDim - 4) / 20) << "int8 of what the codes leave";
}

TEST(TablesUseRpcTest, RegistrationNamesWhatIsWrongWithItsTables) {
  RpcFixture f;
  v1::Model model;
  ExpectCall(f.Register(RequestWithTables("m", "klt", "short"), &model),
             grpc::StatusCode::INVALID_ARGUMENT, {"tables_digest has 5 bytes", "16"});
  ExpectCall(f.Register(RequestWithTables("m", "klt", std::string(16, '\x0b')), &model),
             grpc::StatusCode::FAILED_PRECONDITION, {"0b0b", "upload them first"});
  ExpectCall(f.Register(RpcFixture::ModelRequest("m", "klt"), &model),
             grpc::StatusCode::INVALID_ARGUMENT, {"klt", "tables"});
  const std::string first = UploadOk(&f, UploadMessages(1));
  const std::string second = UploadOk(&f, UploadMessages(2));
  v1::RegisterModelRequest other = RequestWithTables("m", "klt", first);
  other.mutable_layout()->set_head_dim(64);
  ExpectCall(f.Register(other, &model), grpc::StatusCode::INVALID_ARGUMENT,
             {"head_dim", "32", "64"});
  EXPECT_EQ(f.registry.size(), 0);
  ASSERT_TRUE(f.Register(RequestWithTables("m", "klt", first), &model).ok());
  ExpectCall(f.Register(RequestWithTables("m", "klt", second), &model),
             grpc::StatusCode::ALREADY_EXISTS, {"tables_digest = "});
}

TEST(TablesUseRpcTest, KnobsOutOfBoundsAreNamed) {
  RpcFixture f;
  const auto expect = [&](const std::vector<std::string>& parts,
                          const std::function<void(v1::ProfileRequest*)>& spoil) {
    v1::RegisterModelRequest request = RpcFixture::ModelRequest("m", "qjl3p");
    spoil(request.mutable_profiles(0));
    v1::Model model;
    ExpectCall(f.Register(request, &model), grpc::StatusCode::INVALID_ARGUMENT, parts);
  };
  expect({"projection is 5", "1 to 4"},
         [](auto* p) { p->set_projection(static_cast<v1::Projection>(5)); });
  expect({"scale_rule is 4", "1 to 3"},
         [](auto* p) { p->set_scale_rule(static_cast<v1::ScaleRule>(4)); });
  expect({"centering is 0", "1 to 3"},
         [](auto* p) { p->set_centering(v1::CENTERING_UNSPECIFIED); });
  expect({"outlier_source is 3", "1 to 2"},
         [](auto* p) { p->set_outlier_source(static_cast<v1::OutlierSource>(3)); });
  expect({"value_codec is 5", "1 to 4"},
         [](auto* p) { p->set_value_codec(static_cast<v1::ValueCodec>(5)); });
  expect({"value_scale_rule is 2", "1 or 3"},
         [](auto* p) { p->set_value_scale_rule(v1::SCALE_RULE_NORM); });
  expect({"value_bits is 5"}, [](auto* p) { p->set_value_bits(5); });
  expect({"needs registered tables"}, [](auto* p) { p->set_centering(v1::CENTERING_TABLE); });
  EXPECT_EQ(f.registry.size(), 0);
}

}  // namespace
}  // namespace sketchkv
