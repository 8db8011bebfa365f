// encode_locally against the codec itself: what travels are the cells, with the model's
// fingerprint.
#include <random>

#include "kernels/codec.h"
#include "tests/client/model_message.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint32_t kLayers = 5, kHeads = 2, kDim = 32, kTokens = 16;

class LocalEncodeTest : public testing::Test {
 protected:
  void SetUp() override {
    layout_ = {.num_layers = kLayers,
               .num_kv_heads = kHeads,
               .head_dim = kDim,
               .value_dim = kDim,
               .block_tokens = kTokens,
               .key_dtype = DType::kFp32,
               .value_dtype = DType::kFp32};
    const ProfileRequest requests[kLayers] = {{.name = "raw"},
                                              {.name = "qjl", .num_outliers = 2},
                                              {.name = "qjl-paper"},
                                              {.centering = Centering::kBlock, .num_outliers = 3},
                                              {.name = "qjl2p",
                                               .scale_rule = ScaleRule::kLeastSquares,
                                               .value_scale_rule = ScaleRule::kLeastSquares,
                                               .value_bits = 4,
                                               .seed = 9}};
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      SKETCHKV_ASSERT_OK_AND_ASSIGN(CodecProfile profile,
                                    ResolveProfile(requests[layer], layout_, layer));
      profiles_.push_back(profile);
    }
    SKETCHKV_ASSERT_OK_AND_ASSIGN(codec_, BlockCodec::Create(layout_, profiles_, Isa::kScalar));
    server_.models.models["local"] = ModelMessage("local", *codec_);
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    payload_.resize(kLayers * kTokens * kHeads * 2 * kDim);
    for (float& x : payload_) x = normal(random);
  }

  // The cell of (layer, head) of payload_ in order NHD, made without the client.
  std::vector<std::byte> Cell(uint32_t layer, uint32_t head) {
    const float* keys = payload_.data() + layer * kTokens * kHeads * 2 * kDim;
    const float* values = keys + kTokens * kHeads * kDim;
    const auto rows = [&](const float* data) {
      return RowsView{reinterpret_cast<const std::byte*>(data + head * kDim),
                      kHeads * kDim * sizeof(float)};
    };
    std::vector<std::byte> cell(codec_->cell_bytes(layer));
    SKETCHKV_EXPECT_OK(codec_->cell(layer, head).Encode(rows(keys), rows(values), kTokens, cell));
    return cell;
  }
  std::string Cells() {
    std::string cells;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t head = 0; head < kHeads; ++head) {
        const std::vector<std::byte> cell = Cell(layer, head);
        cells.append(reinterpret_cast<const char*>(cell.data()), cell.size());
      }
    }
    return cells;
  }
  // The same block in order HND.
  std::vector<float> Hnd() const {
    std::vector<float> out(payload_.size());
    for (uint32_t half = 0; half < 2 * kLayers; ++half) {
      for (uint32_t t = 0; t < kTokens; ++t) {
        for (uint32_t h = 0; h < kHeads; ++h) {
          std::copy_n(payload_.begin() + ((half * kTokens + t) * kHeads + h) * kDim, kDim,
                      out.begin() + ((half * kHeads + h) * kTokens + t) * kDim);
        }
      }
    }
    return out;
  }
  PutPart Part(const std::vector<float>& payload) const {
    PutPart part;
    part.model = "local";
    part.block_hash = BlockId(32, 'a');
    part.num_tokens = kTokens;
    part.payload = std::as_bytes(std::span(payload));
    return part;
  }

  KvLayout layout_;
  std::vector<CodecProfile> profiles_;
  std::unique_ptr<BlockCodec> codec_;
  std::vector<float> payload_;
  FakeServer server_;
  ClientOptions options_{.encode_locally = true};
};

TEST_F(LocalEncodeTest, SendsTheCodecsCellsInEitherOrder) {
  const std::string cells = Cells();
  std::vector<ArrivedPut> puts;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    while (ReadPut(stream, codec_->slot_bytes(), &put)) {
      puts.push_back(put);
      stream->Write(PutAnswer(put.first.request_id()));
    }
    return grpc::Status::OK;
  };
  const std::vector<float> hnd = Hnd();
  std::vector<PutPart> parts = {Part(payload_), Part(hnd)};
  parts[1].order = RawOrder::kHnd;
  for (const auto& result : server_.NewClient(options_)->PutAll(parts)) SKETCHKV_EXPECT_OK(result);
  ASSERT_EQ(puts.size(), 2u);
  for (const ArrivedPut& put : puts) {
    EXPECT_EQ(put.payload, cells);
    EXPECT_TRUE(put.first.header().encoded());
    EXPECT_EQ(put.first.header().part().fingerprint(), std::string(16, 'f'));
    EXPECT_EQ(put.checksum, Checksum(std::as_bytes(std::span(cells))));
  }
}

TEST_F(LocalEncodeTest, NanIsNamedAndOtherPartsGoOn) {
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    while (ReadPut(stream, codec_->slot_bytes(), &put)) {
      stream->Write(PutAnswer(put.first.request_id()));
    }
    return grpc::Status::OK;
  };
  std::vector<float> bad = payload_;
  // Layer 1, keys, token 5, head 1.
  bad[(1 * 2 * kTokens + 5) * kHeads * kDim + kDim + 3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<PutPart> parts = {Part(bad), Part(payload_)};
  const auto results = server_.NewClient(options_)->PutAll(parts);
  EXPECT_THAT(results[0],
              StatusIs(absl::StatusCode::kInvalidArgument, {"layer 1", "head 1", "token 5"}));
  SKETCHKV_EXPECT_OK(results[1]);
}

TEST_F(LocalEncodeTest, ModelReplacedMeanwhileIsEncodedAnew) {
  int tries = 0;
  server_.cache.on_put = [&](grpc::ServerContext*, PutStream* stream) {
    ArrivedPut put;
    while (ReadPut(stream, codec_->slot_bytes(), &put)) {
      const bool current =
          put.first.header().part().fingerprint() == server_.models.models["local"].fingerprint();
      ++tries;
      stream->Write(PutAnswer(put.first.request_id(), current ? 0 : 3, "fingerprint"));
    }
    return grpc::Status::OK;
  };
  const auto client = server_.NewClient(options_);
  SKETCHKV_EXPECT_OK(client->Put(Part(payload_)));
  server_.models.models["local"].set_fingerprint(std::string(16, 'g'));
  SKETCHKV_EXPECT_OK(client->Put(Part(payload_)));
  EXPECT_EQ(tries, 3);
}

TEST(ProfileSpecTest, DefaultIsTheCodecs) { EXPECT_EQ(ProfileSpec().name, ProfileRequest().name); }

TEST_F(LocalEncodeTest, ServerOfAnotherFormatIsRefused) {
  server_.models.models["local"].set_format_version(kFormatVersion + 1);
  EXPECT_THAT(server_.NewClient(options_)->Put(Part(payload_)),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"format_version"}));
  EXPECT_EQ(server_.cache.num_puts, 0);
}

}  // namespace
}  // namespace sketchkv
