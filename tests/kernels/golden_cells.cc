#include "tests/kernels/golden_cells.h"

#include "tests/kernels/codec_testing.h"

namespace sketchkv::testing {
namespace {

// Sixteenths in [-8, 8), a larger channel, a zero row.
GuardedRows IntegerRows(uint32_t num_rows, uint32_t dim, DType dtype, uint64_t seed) {
  GuardedRows rows(num_rows, dim, dtype, 0, 0);
  Random random(seed);
  for (uint32_t t = 0; t < num_rows; ++t) {
    for (uint32_t c = 0; c < dim; ++c) {
      const auto x = static_cast<double>(static_cast<int>(random.Bits() % 256) - 128);
      rows.Set(t, c, t == 3 ? 0.0 : x * (c == 5 ? 0.5 : 0.0625));
    }
  }
  return rows;
}

}  // namespace

std::vector<GoldenCell> GoldenCells() {
  ProfileRequest residual = Named("qjl");
  residual.num_outliers = 2;
  residual.value_bits = 4;
  ProfileRequest dense = Named("qjl-paper");
  dense.num_outliers = 3;
  dense.value_bits = 8;
  ProfileRequest planes = Named("qjl3p");
  planes.centering = Centering::kBlock;
  planes.value_bits = 3;
  ProfileRequest outliers = Named("qjl2p");
  outliers.num_outliers = 4;
  outliers.value_codec = ValueCodec::kMinMax;
  ProfileRequest table_outliers = Named("qjl3p");
  table_outliers.num_outliers = 3;
  table_outliers.outlier_source = OutlierSource::kTable;
  table_outliers.centering = Centering::kTable;
  ProfileRequest dense_codes = Named("qjl4p");
  dense_codes.projection = Projection::kOrthogonal;
  dense_codes.value_bits = 4;
  return {
      {"raw_d16.cell", Layout(16, 16, 16), Named("raw"), 13},
      {"qjl_d64.cell", Layout(64, 64, 16), Named("qjl"), 16},
      {"qjl_residual_d40.cell", Layout(40, 24, 20, DType::kFp16), residual, 19},
      {"qjl2p_outliers_d128.cell", Layout(128, 128, 32), outliers, 32},
      {"qjl3p_mean_d80.cell", Layout(80, 72, 20), planes, 18},
      {"qjl4p_d64.cell", Layout(64, 64, 16, DType::kFp16), Named("qjl4p"), 16},
      {"klt_d96.cell", Layout(96, 64, 16), Named("klt"), 16},
      {"klt_d144.cell", Layout(144, 56, 32), Named("klt"), 27},  // runs of 1 bit, of 17 rows
      {"klt_d56.cell", Layout(56, 144, 16), Named("klt"), 9},
      {"qjl3p_table_outliers_d40.cell", Layout(40, 24, 16), table_outliers, 16},
      {"qjl4p_dense_d24.cell", Layout(24, 40, 16), dense_codes, 12},
      {"qjl_paper_d24.cell", Layout(24, 24, 36, DType::kFp32), dense, 35},
  };
}

std::vector<float> AnswersOf(const GoldenCell& golden, std::span<const std::byte> cell, Isa isa) {
  const KvLayout& layout = golden.layout;
  const auto block = MakeCodec(layout, Resolve(golden.request, layout), isa);
  const CellCodec& codec = block->cell(0, 0);
  const uint32_t tokens = golden.num_tokens, d = layout.head_dim, dv = layout.value_dim;
  std::vector<float> answers(size_t{tokens} * (d + dv + 2) + 2 * (dv + 1));
  float* values = answers.data() + size_t{tokens} * d;
  float* scores = values + size_t{tokens} * dv;
  float* attention = scores + 2 * size_t{tokens};
  const auto bytes = [](float* p) { return reinterpret_cast<std::byte*>(p); };
  if (auto status = codec.Decode(cell, tokens, DType::kFp32, {bytes(answers.data()), d * 4},
                                 DType::kFp32, {bytes(values), dv * 4});
      !status.ok()) {
    return {};
  }
  std::vector<float> queries(2 * size_t{d});
  for (size_t i = 0; i < queries.size(); ++i) {
    queries[i] = static_cast<float>(static_cast<int>(i * 37 % 61) - 30) / 64;
  }
  const auto prepared = codec.PrepareQueries(queries);
  codec.Score(cell, 0, tokens, *prepared, scores, tokens);
  AttentionPartial partial = codec.NewPartial(2);
  codec.Attend(cell, 0, tokens, *prepared, {.softmax_scale = 0.125f}, &partial);
  codec.Finish(partial, attention, attention + 2 * size_t{dv});
  return answers;
}

std::vector<uint8_t> TablesOf(const GoldenCell& golden) {
  const CodecProfile profile = Resolve(golden.request, golden.layout);
  const auto codec = MakeCodec(golden.layout, profile, Isa::kScalar);
  return codec->tables() == nullptr ? std::vector<uint8_t>() : codec->tables()->Serialize();
}

std::vector<std::byte> EncodeGolden(const GoldenCell& golden, Isa isa) {
  const KvLayout& layout = golden.layout;
  const auto codec = MakeCodec(layout, Resolve(golden.request, layout), isa);
  return EncodeCell(
      codec->cell(0, 0), IntegerRows(golden.num_tokens, layout.head_dim, layout.key_dtype, 5),
      IntegerRows(golden.num_tokens, layout.value_dim, layout.value_dtype, 6), golden.num_tokens);
}

}  // namespace sketchkv::testing
