// encode_locally against the codec itself: what travels are the cells, with the model's
// fingerprint.
#include <random>

#include "kernels/codec.h"
#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint32_t kLayers = 3, kHeads = 2, kDim = 32, kTokens = 16;

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
    ProfileRequest raw;
    raw.name = "raw";
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      SKETCHKV_ASSERT_OK_AND_ASSIGN(
          CodecProfile profile,
          ResolveProfile(layer == 0 ? raw : ProfileRequest{.num_outliers = 2}, layout_, layer));
      profiles_.push_back(profile);
    }
    SKETCHKV_ASSERT_OK_AND_ASSIGN(codec_, BlockCodec::Create(layout_, profiles_, Isa::kScalar));
    server_.models.models["local"] = Message();
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    payload_.resize(kLayers * kTokens * kHeads * 2 * kDim);
    for (float& x : payload_) x = normal(random);
  }

  v1::Model Message() {
    v1::Model model = SmallModel("local");
    v1::KvLayout* layout = model.mutable_layout();
    layout->set_num_layers(kLayers);
    layout->set_head_dim(kDim);
    layout->set_value_dim(kDim);
    layout->set_block_tokens(kTokens);
    model.clear_profiles();
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const CodecProfile& from = profiles_[layer];
      v1::Profile* to = model.add_profiles();
      to->set_name(from.name);
      to->set_version(from.version);
      to->set_layer_begin(layer);
      to->set_layer_count(1);
      to->set_sign_bits(from.sign_bits);
      if (from.key_codec == KeyCodec::kSketch) {
        to->set_projection(static_cast<v1::Projection>(from.projection));
        to->set_scale_rule(static_cast<v1::ScaleRule>(from.scale_rule));
        to->set_outlier_method(static_cast<v1::OutlierMethod>(from.outlier_method));
      }
      to->set_num_outliers(from.num_outliers);
      to->set_outlier_sign_bits(from.outlier_sign_bits);
      to->set_outlier_group_tokens(from.outlier_group_tokens);
      to->set_value_bits(from.value_bits);
      to->set_value_group_size(from.value_group_size);
      to->set_seed(from.seed);
      to->set_cell_bytes(codec_->cell(layer).cell_bytes());
    }
    model.set_format_version(kFormatVersion);
    model.set_slot_bytes(codec_->slot_bytes());
    return model;
  }

  // The cell of (layer, head) of payload_ in order NHD, made without the client.
  std::vector<std::byte> Cell(uint32_t layer, uint32_t head) {
    const float* keys = payload_.data() + layer * kTokens * kHeads * 2 * kDim;
    const float* values = keys + kTokens * kHeads * kDim;
    const auto rows = [&](const float* data) {
      return RowsView{reinterpret_cast<const std::byte*>(data + head * kDim),
                      kHeads * kDim * sizeof(float)};
    };
    std::vector<std::byte> cell(codec_->cell(layer).cell_bytes());
    SKETCHKV_EXPECT_OK(codec_->cell(layer).Encode(rows(keys), rows(values), kTokens, cell));
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
    EXPECT_EQ(put.first.header().part().checksum(),
              client::Checksum(std::as_bytes(std::span(cells))));
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

TEST_F(LocalEncodeTest, ServerOfAnotherFormatIsRefused) {
  server_.models.models["local"].set_format_version(kFormatVersion + 1);
  EXPECT_THAT(server_.NewClient(options_)->Put(Part(payload_)),
              StatusIs(absl::StatusCode::kFailedPrecondition, {"format_version"}));
  EXPECT_EQ(server_.cache.num_puts, 0);
}

}  // namespace
}  // namespace sketchkv
