#include "tests/kernels/codec_testing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>

namespace sketchkv::testing {
namespace {

// Values of the non-negative finite codes of an 8-bit or 16-bit format, ascending as the codes are.
std::vector<double> Magnitudes(DType dtype) {
  uint32_t end = 0x7F80;  // bf16
  if (dtype == DType::kFp16) end = 0x7C00;
  if (dtype == DType::kFp8E4M3) end = 0x7F;
  if (dtype == DType::kFp8E5M2) end = 0x7C;
  std::vector<double> values;
  for (uint32_t code = 0; code < end; ++code) {
    std::byte raw[4];
    std::memcpy(raw, &code, sizeof(raw));
    values.push_back(ReferenceRows(raw, 0, dtype, 1.0, 1, 1)[0][0]);
  }
  return values;
}

uint64_t NearestCode(double value, DType dtype) {
  static const std::map<DType, std::vector<double>>* const tables = [] {
    auto* all = new std::map<DType, std::vector<double>>();
    for (DType d : {DType::kBf16, DType::kFp16, DType::kFp8E4M3, DType::kFp8E5M2}) {
      (*all)[d] = Magnitudes(d);
    }
    return all;
  }();
  const std::vector<double>& table = tables->at(dtype);
  const double magnitude = std::fabs(value);
  auto above = std::upper_bound(table.begin(), table.end(), magnitude);
  uint64_t code = above - table.begin() - 1;
  if (above != table.end() && *above - magnitude < magnitude - table[code]) ++code;
  const uint64_t sign = uint64_t{1} << (8 * DTypeBytes(dtype) - 1);
  return code | (value < 0 ? sign : 0);
}

}  // namespace

uint64_t Random::Bits() {
  state_ += 0xD1342543DE82EF95ULL;
  uint64_t z = state_;
  z = (z ^ (z >> 32)) * 0xDABA0B6EB09322E3ULL;
  z = (z ^ (z >> 32)) * 0xDABA0B6EB09322E3ULL;
  return z ^ (z >> 32);
}

double Random::Uniform() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }

double Random::Normal() {
  while (true) {
    const double u = 2 * Uniform() - 1;
    const double v = 2 * Uniform() - 1;
    const double s = u * u + v * v;
    if (s > 0 && s < 1) return u * std::sqrt(-2 * std::log(s) / s);
  }
}

GuardedRows::GuardedRows(uint32_t num_rows, uint32_t dim, DType dtype, size_t misalignment,
                         size_t gap)
    : num_rows_(num_rows), dim_(dim), dtype_(dtype) {
  const size_t row = dim * DTypeBytes(dtype);
  stride_ = row + gap;
  offset_ = 64 + misalignment;
  // 0xFF is NaN in every dtype we read. The last row ends the buffer, so that a sanitizer sees a
  // read behind it.
  bytes_.assign(offset_ + (num_rows - 1) * stride_ + row, std::byte{0xFF});
  for (uint32_t t = 0; t < num_rows; ++t) {
    std::memset(bytes_.data() + offset_ + t * stride_, 0, row);
  }
}

void GuardedRows::SetBits(uint32_t row, uint32_t channel, uint64_t bits) {
  std::memcpy(bytes_.data() + offset_ + row * stride_ + channel * DTypeBytes(dtype_), &bits,
              DTypeBytes(dtype_));
}

void GuardedRows::Set(uint32_t row, uint32_t channel, double value) {
  if (dtype_ == DType::kFp32) {
    SetBits(row, channel, std::bit_cast<uint32_t>(static_cast<float>(value)));
  } else {
    SetBits(row, channel, NearestCode(value, dtype_));
  }
}

Matrix GuardedRows::Doubles(double scale) const {
  return ReferenceRows(bytes_.data() + offset_, stride_, dtype_, scale, num_rows_, dim_);
}

GuardedRows RandomRows(uint32_t num_rows, uint32_t dim, DType dtype, uint64_t seed,
                       size_t misalignment, double magnitude) {
  // An even gap for two-byte types is not wanted either: rows may start anywhere.
  GuardedRows rows(num_rows, dim, dtype, misalignment, misalignment == 0 ? 0 : 7);
  Random random(seed);
  for (uint32_t t = 0; t < num_rows; ++t) {
    const double size = t % 17 == 16 ? 0.0 : magnitude * (0.25 + random.Uniform());
    for (uint32_t c = 0; c < dim; ++c) {
      double x = random.Uniform() + random.Uniform() + random.Uniform() - 1.5;
      if (c % 29 == 3) x *= 6;
      rows.Set(t, c, x * size);
    }
  }
  return rows;
}

KvLayout Layout(uint32_t head_dim, uint32_t value_dim, uint32_t block_tokens, DType dtype) {
  KvLayout layout;
  layout.num_layers = 1;
  layout.num_kv_heads = 1;
  layout.head_dim = head_dim;
  layout.value_dim = value_dim;
  layout.block_tokens = block_tokens;
  layout.key_dtype = dtype;
  layout.value_dtype = dtype;
  if (DTypeBytes(dtype) == 1) {
    layout.key_scale = 0.37f;
    layout.value_scale = 1.9f;
  }
  return layout;
}

ProfileRequest Named(const std::string& name) {
  ProfileRequest request;
  request.name = name;
  return request;
}

namespace {

bool NeedsTables(const ProfileRequest& request) {
  return request.name == "klt" || request.centering == Centering::kTable ||
         request.outlier_source == OutlierSource::kTable ||
         request.value_codec == ValueCodec::kBasis;
}

}  // namespace

CodecProfile Resolve(const ProfileRequest& request, const KvLayout& layout, uint32_t layer) {
  std::shared_ptr<const ModelTables> tables;
  if (NeedsTables(request)) tables = RandomTables(layout, request.num_outliers.value_or(0));
  auto profile = ResolveProfile(request, layout, layer, tables.get());
  if (!profile.ok()) {
    std::cerr << profile.status() << std::endl;
    std::abort();
  }
  return *std::move(profile);
}

std::unique_ptr<BlockCodec> MakeCodec(const KvLayout& layout, const CodecProfile& profile,
                                      Isa isa) {
  std::shared_ptr<const ModelTables> tables;
  if (profile.uses_tables()) tables = RandomTables(layout, profile.num_outliers);
  auto codec = BlockCodec::Create(layout, std::vector<CodecProfile>(layout.num_layers, profile),
                                  isa, std::move(tables));
  if (!codec.ok()) {
    std::cerr << codec.status() << std::endl;
    std::abort();
  }
  return *std::move(codec);
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kNeon}) {
    if (IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

Isa BestIsa() { return SupportedIsas().back(); }

std::vector<std::byte> EncodeCell(const CellCodec& codec, const GuardedRows& keys,
                                  const GuardedRows& values, uint32_t num_tokens) {
  std::vector<std::byte> cell(codec.cell_bytes(), kPoison);
  if (auto status = codec.Encode(keys.view(), values.view(), num_tokens, cell); !status.ok()) {
    std::cerr << status << std::endl;
    std::abort();
  }
  return cell;
}

std::vector<float> RandomQueries(uint32_t count, uint32_t dim, uint64_t seed) {
  Random random(seed);
  std::vector<float> queries(size_t{count} * dim);
  for (float& x : queries) x = static_cast<float>(random.Normal());
  return queries;
}

std::vector<double> RowOf(const std::vector<float>& queries, uint32_t row, uint32_t dim) {
  return {queries.begin() + size_t{row} * dim, queries.begin() + size_t{row + 1} * dim};
}

std::vector<NamedRequest> AllRequests() {
  std::vector<NamedRequest> all;
  const auto add = [&](std::string name, const char* profile, auto&&... edits) {
    ProfileRequest request = Named(profile);
    (edits(request), ...);
    all.push_back({std::move(name), request});
  };
  add("raw", "raw");
  add("qjl", "qjl");
  add("qjl_residual4", "qjl", [](auto& r) { r.num_outliers = 4; });
  add("qjl_residual15_v4", "qjl", [](auto& r) { r.num_outliers = 15, r.value_bits = 4; });
  add("qjl_v8_g16", "qjl", [](auto& r) { r.value_bits = 8, r.value_group_size = 16; });
  add("qjl_v2_g576", "qjl", [](auto& r) { r.value_group_size = 576; });
  add("qjl_rawvalues_seed", "qjl", [](auto& r) { r.value_bits = 16, r.seed = 7; });
  add("qjl_gaussian", "qjl", [](auto& r) { r.projection = Projection::kGaussian; });
  add("qjl_orthogonal", "qjl", [](auto& r) { r.projection = Projection::kOrthogonal; });
  add("qjl_centered", "qjl", [](auto& r) { r.centering = Centering::kTable, r.num_outliers = 2; });
  add("codes2", "qjl2p");
  add("codes2_residual4", "qjl2p", [](auto& r) { r.num_outliers = 4; });
  add("codes2_table_outliers", "qjl2p", [](auto& r) {
    r.num_outliers = 3, r.outlier_source = OutlierSource::kTable, r.centering = Centering::kTable;
  });
  add("codes3", "qjl3p");
  add("codes3_block_mean_v4", "qjl3p",
      [](auto& r) { r.centering = Centering::kBlock, r.value_bits = 4; });
  add("codes3_least_squares_v3", "qjl3p", [](auto& r) {
    r.scale_rule = r.value_scale_rule = ScaleRule::kLeastSquares, r.value_bits = 3;
  });
  add("codes4_orthogonal_minmax", "qjl4p",
      [](auto& r) { r.projection = Projection::kOrthogonal, r.value_codec = ValueCodec::kMinMax; });
  add("codes2_basis_values", "qjl2p", [](auto& r) { r.value_codec = ValueCodec::kBasis; });
  add("klt", "klt");
  add("klt_rotated_values", "klt",
      [](auto& r) { r.value_codec = ValueCodec::kRotated, r.centering = Centering::kNone; });
  add("paper", "qjl-paper");
  add("paper_no_outliers", "qjl-paper", [](auto& r) { r.num_outliers = 0; });
  add("paper_hadamard", "qjl-paper",
      [](auto& r) { r.projection = Projection::kHadamard, r.outlier_sign_bits = 32; });
  return all;
}

}  // namespace sketchkv::testing
