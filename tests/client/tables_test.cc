// Tables against a server that misbehaves as told: what is sent, what is checked, and the local
// encoder that needs them.
#include <openssl/evp.h>

#include <limits>
#include <random>

#include "tests/client/model_message.h"
#include "tests/testing/random_tables.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint32_t kLayers = 2, kHeads = 2, kDim = 32, kTokens = 16;

std::string Sha256Prefix(const std::vector<uint8_t>& bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  EVP_Digest(bytes.data(), bytes.size(), digest, nullptr, EVP_sha256(), nullptr);
  return std::string(reinterpret_cast<const char*>(digest), 16);
}

class TablesTest : public ::testing::Test {
 protected:
  TablesTest() {
    options_.retry_pause = std::chrono::milliseconds(1);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        const HeadTable& table = tables_->at(layer, head);
        const auto basis = [](const Basis& from) {
          return BasisSpec{from.rows, from.group_bits, from.group_rms};
        };
        specs_.push_back({layer, head, table.key_mean, table.outlier_channels,
                          basis(table.key_basis), table.value_mean, basis(table.value_basis)});
      }
    }
  }

  // A klt model of these tables, and the codec it has.
  void ServeKlt() {
    std::vector<CodecProfile> profiles;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      SKETCHKV_ASSERT_OK_AND_ASSIGN(CodecProfile profile,
                                    ResolveProfile({.name = "klt"}, layout_, layer, tables_.get()));
      profiles.push_back(profile);
    }
    SKETCHKV_ASSERT_OK_AND_ASSIGN(codec_,
                                  BlockCodec::Create(layout_, profiles, Isa::kScalar, tables_));
    v1::Model message = ModelMessage("klt", *codec_);
    message.set_tables_digest(digest_);
    server_.models.models["klt"] = message;
    server_.models.on_get_tables = [this](const std::string&, auto* writer) {
      for (const v1::HeadTable& table : arrived_) {
        v1::GetTablesResponse response;
        *response.mutable_table() = table;
        writer->Write(response);
      }
      return grpc::Status::OK;
    };
  }
  // Keeps what comes and answers with `digest`.
  void Accept(const std::string& digest) {
    server_.models.on_upload = [this, digest](auto* reader, v1::UploadTablesResponse* response) {
      arrived_.clear();
      layouts_ = 0;
      for (v1::UploadTablesRequest request; reader->Read(&request);) {
        arrived_.push_back(request.table());
        layouts_ += request.has_layout() ? 1 : 0;
        EXPECT_EQ(request.has_layout(), arrived_.size() == 1);
      }
      response->set_tables_digest(digest);
      return grpc::Status::OK;
    };
  }

  static CacheLayout Layout() {
    return {.num_layers = kLayers,
            .num_kv_heads = kHeads,
            .head_dim = kDim,
            .value_dim = kDim,
            .block_tokens = kTokens,
            .key_type = ElementType::kFp32,
            .value_type = ElementType::kFp32};
  }

  const KvLayout layout_{.num_layers = kLayers,
                         .num_kv_heads = kHeads,
                         .head_dim = kDim,
                         .value_dim = kDim,
                         .block_tokens = kTokens,
                         .key_dtype = DType::kFp32,
                         .value_dtype = DType::kFp32};
  const std::shared_ptr<const ModelTables> tables_ = testing::RandomTables(layout_, 3);
  const std::string digest_ = Sha256Prefix(tables_->Serialize());
  std::vector<HeadTableSpec> specs_;
  std::unique_ptr<BlockCodec> codec_;
  std::vector<v1::HeadTable> arrived_;
  int layouts_ = 0;
  FakeServer server_;
  ClientOptions options_;
};

void ExpectEqual(const std::vector<HeadTableSpec>& a, const std::vector<HeadTableSpec>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].layer, b[i].layer);
    EXPECT_EQ(a[i].head, b[i].head);
    EXPECT_EQ(a[i].key_mean, b[i].key_mean);
    EXPECT_EQ(a[i].outlier_channels, b[i].outlier_channels);
    EXPECT_EQ(a[i].key_basis.rows, b[i].key_basis.rows);
    EXPECT_EQ(a[i].key_basis.group_bits, b[i].key_basis.group_bits);
    EXPECT_EQ(a[i].value_mean, b[i].value_mean);
    EXPECT_EQ(a[i].value_basis.group_rms, b[i].value_basis.group_rms);
  }
}

TEST_F(TablesTest, GoUpInAnyOrderAndComeBackInTheirs) {
  Accept(digest_);
  const auto client = server_.NewClient(options_);
  std::vector<HeadTableSpec> mixed = {specs_[3], specs_[0], specs_[2], specs_[1]};
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::string digest, client->UploadTables(Layout(), mixed));
  EXPECT_EQ(digest, digest_);
  EXPECT_EQ(arrived_.size(), 4u);
  EXPECT_EQ(layouts_, 1);
  ServeKlt();
  std::swap(arrived_[0], arrived_[3]);
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<HeadTableSpec> got, client->GetTables("klt"));
  ExpectEqual(got, specs_);
}

TEST_F(TablesTest, AreCheckedBeforeAnythingIsSent) {
  const auto client = server_.NewClient(options_);
  const auto expect = [&](std::vector<std::string> parts,
                          const std::function<void(std::vector<HeadTableSpec>*)>& spoil) {
    std::vector<HeadTableSpec> specs = specs_;
    spoil(&specs);
    EXPECT_THAT(client->UploadTables(Layout(), specs),
                StatusIs(absl::StatusCode::kInvalidArgument, std::move(parts)));
  };
  expect({"3 heads", "4"}, [](auto* specs) { specs->pop_back(); });
  expect({"layer 0 head 1", "twice"}, [](auto* specs) { (*specs)[2] = (*specs)[1]; });
  expect({"layer 2 head 0", "2 layers"}, [](auto* specs) { (*specs)[2].layer = 2; });
  expect({"layer 1 head 1", "value_mean", "31", "32"},
         [](auto* specs) { (*specs)[3].value_mean.pop_back(); });
  expect({"layer 0 head 0", "key_basis", "nan"}, [](auto* specs) {
    (*specs)[0].key_basis.rows[7] = std::numeric_limits<float>::quiet_NaN();
  });
  EXPECT_EQ(server_.models.num_uploads, 0);
}

TEST_F(TablesTest, AnUploadIsRepeatedWhereThatHelpsAndARefusalIsNot) {
  const auto client = server_.NewClient(options_);
  Accept(digest_);
  const auto accept = server_.models.on_upload;
  server_.models.on_upload = [&](auto* reader, auto* response) {
    if (server_.models.num_uploads == 1) {
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "dying");
    }
    return accept(reader, response);
  };
  SKETCHKV_EXPECT_OK(client->UploadTables(Layout(), specs_));
  EXPECT_EQ(server_.models.num_uploads, 2);
  server_.models.on_upload = [](auto*, auto*) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too large");
  };
  EXPECT_THAT(client->UploadTables(Layout(), specs_),
              StatusIs(absl::StatusCode::kResourceExhausted, {"too large"}));
  EXPECT_EQ(server_.models.num_uploads, 3);
}

TEST_F(TablesTest, AnotherDigestIsNoAnswer) {
  Accept(std::string(16, 'x'));
  const auto client = server_.NewClient(options_);
  EXPECT_THAT(client->UploadTables(Layout(), specs_),
              StatusIs(absl::StatusCode::kInternal, {"tables_digest is 7878"}));
  ServeKlt();
  arrived_[1].mutable_key_basis()->set_group_rms(arrived_[0].value_mean().substr(0, 4));
  arrived_[1].set_key_mean(arrived_[0].key_mean());
  EXPECT_FALSE(client->GetTables("klt").ok());
  arrived_[1].mutable_key_basis()->set_group_rms(arrived_[0].key_basis().group_rms());
  EXPECT_THAT(client->GetTables("klt"), StatusIs(absl::StatusCode::kDataLoss, {"digest"}));
  arrived_.pop_back();
  EXPECT_THAT(client->GetTables("klt"), StatusIs(absl::StatusCode::kInternal, {"3 heads", "4"}));
}

class LocalKltTest : public TablesTest {
 protected:
  void SetUp() override {
    options_.encode_locally = true;
    Accept(digest_);
    SKETCHKV_ASSERT_OK(server_.NewClient(options_)->UploadTables(Layout(), specs_));
    ServeKlt();
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    payload_.resize(kLayers * 2 * kTokens * kHeads * kDim);
    for (float& x : payload_) x = normal(random);
    part_.model = "klt";
    part_.block_hash = BlockId(32, 'a');
    part_.num_tokens = kTokens;
    part_.payload = std::as_bytes(std::span(payload_));
  }
  std::vector<std::byte> Cells() {
    std::vector<std::byte> cells;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        const float* keys = payload_.data() + layer * 2 * kTokens * kHeads * kDim + head * kDim;
        const auto rows = [](const float* data) {
          return RowsView{reinterpret_cast<const std::byte*>(data), kHeads * kDim * sizeof(float)};
        };
        std::vector<std::byte> cell(codec_->cell_bytes(layer));
        SKETCHKV_EXPECT_OK(
            codec_->cell(layer, head)
                .Encode(rows(keys), rows(keys + kTokens * kHeads * kDim), kTokens, cell));
        cells.insert(cells.end(), cell.begin(), cell.end());
      }
    }
    return cells;
  }

  std::vector<float> payload_;
  PutPart part_;
};

TEST_F(LocalKltTest, EncodesEachHeadInItsOwnBasisFetchedOnce) {
  const auto client = server_.NewClient(options_);
  for (int i = 0; i < 2; ++i) {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> cells, client->Encode(part_));
    EXPECT_EQ(cells, Cells());
  }
  // A head range of its own is encoded by its own tables too.
  part_.range = {.layer_begin = 1, .layer_count = 1, .head_begin = 1, .head_count = 1};
  std::vector<float> one;
  for (uint32_t row = 0; row < 2 * kTokens; ++row) {
    const float* from = payload_.data() + ((2 * kTokens + row) * kHeads + 1) * kDim;
    one.insert(one.end(), from, from + kDim);
  }
  part_.payload = std::as_bytes(std::span(one));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::vector<std::byte> cell, client->Encode(part_));
  const std::vector<std::byte> all = Cells();
  EXPECT_TRUE(std::equal(cell.begin(), cell.end(), all.end() - codec_->cell_bytes(1), all.end()));
  EXPECT_EQ(server_.models.num_table_gets, 1);
}

TEST_F(LocalKltTest, AFetchThatFailsIsTriedAgainAtTheNextCall) {
  const auto serve = server_.models.on_get_tables;
  server_.models.on_get_tables = [](auto, auto) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "busy");
  };
  const auto client = server_.NewClient(options_);
  EXPECT_THAT(client->Put(part_), StatusIs(absl::StatusCode::kResourceExhausted, {"busy"}));
  EXPECT_EQ(server_.cache.num_puts, 0);
  server_.models.on_get_tables = serve;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    while (ReadPut(stream, codec_->slot_bytes(), &put)) {
      const auto cells = Cells();
      EXPECT_EQ(put.payload,
                std::string(reinterpret_cast<const char*>(cells.data()), cells.size()));
      stream->Write(PutAnswer(put.first.request_id()));
    }
    return grpc::Status::OK;
  };
  SKETCHKV_EXPECT_OK(client->Put(part_));
}

TEST_F(LocalKltTest, TablesOfAnotherDigestEncodeNothing) {
  server_.models.models["klt"].set_tables_digest(std::string(16, 'x'));
  EXPECT_THAT(server_.NewClient(options_)->Encode(part_),
              StatusIs(absl::StatusCode::kDataLoss, {"digest"}));
}

}  // namespace
}  // namespace sketchkv
