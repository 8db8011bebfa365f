#include "tests/testing/reference_codec.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace sketchkv::testing {
namespace {

constexpr double kPi = 3.141592653589793;

uint64_t StreamWord(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

// Entry (r, c) of one block before its diagonal: H(2^a) over the low part, a DCT over the high.
double BlockEntry(uint32_t dim, uint32_t r, uint32_t c) {
  uint32_t length = 1;
  while (dim % (2 * length) == 0) length *= 2;
  const uint32_t b = dim / length;
  const double walsh = __builtin_parity((r % length) & (c % length)) != 0 ? -1.0 : 1.0;
  const uint32_t u = r / length;
  const uint32_t v = c / length;
  if (u == 0) return walsh;
  return walsh * std::sqrt(2.0) * std::cos(kPi * (2.0 * v + 1.0) * u / (2.0 * b));
}

uint64_t ReadUint(const std::byte* p, size_t bytes) {
  uint64_t x = 0;
  for (size_t i = 0; i < bytes; ++i) x |= std::to_integer<uint64_t>(p[i]) << (8 * i);
  return x;
}

// A binary float of the given widths with a sign bit on top; no special values.
double SmallFloat(uint64_t bits, int exponent_bits, int mantissa_bits) {
  const uint64_t mantissa = bits & ((uint64_t{1} << mantissa_bits) - 1);
  const auto exponent =
      static_cast<int>(bits >> mantissa_bits & ((uint64_t{1} << exponent_bits) - 1));
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits >> (exponent_bits + mantissa_bits)) != 0 ? -1.0 : 1.0;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign *
         std::ldexp(mantissa + std::ldexp(1.0, mantissa_bits), exponent - bias - mantissa_bits);
}

double Half(const std::byte* p) { return SmallFloat(ReadUint(p, 2), 5, 10); }

size_t BytesOf(DType dtype) {
  if (dtype == DType::kFp32) return 4;
  return dtype == DType::kBf16 || dtype == DType::kFp16 ? 2 : 1;
}

double Element(const std::byte* p, DType dtype) {
  switch (dtype) {
    case DType::kBf16:
      return SmallFloat(ReadUint(p, 2), 8, 7);
    case DType::kFp16:
      return Half(p);
    case DType::kFp32:
      return SmallFloat(ReadUint(p, 4), 8, 23);
    case DType::kFp8E4M3:
      return SmallFloat(ReadUint(p, 1), 4, 3);
    case DType::kFp8E5M2:
      return SmallFloat(ReadUint(p, 1), 5, 2);
  }
  std::abort();
}

size_t Up(size_t value, size_t step) { return (value + step - 1) / step * step; }

// The positive levels for N(0,1), as kernels/README.md gives them.
std::vector<double> Levels(uint32_t bits, double unit) {
  const std::vector<std::vector<int>> tables = {
      {1}, {27, 90}, {13, 40, 71, 114}, {5, 15, 25, 36, 48, 62, 79, 104}};
  const double units[] = {0.79788456, 0.0167820, 0.0188866, 0.0262197};
  std::vector<double> levels;
  for (int x : tables[bits - 1]) {
    const double level = x * units[bits - 1] * unit;
    levels.insert(levels.begin(), -level);
    levels.push_back(level);
  }
  return levels;
}

// 0.0179529 (+-65 +- 34 +- 17), ascending.
std::vector<double> SpreadLevels(double unit) {
  std::vector<double> levels;
  for (int code = 0; code < 8; ++code) {
    const auto sign = [code](int bit) { return (code >> bit & 1) != 0 ? 1.0 : -1.0; };
    levels.push_back(unit * 0.0179529 * (65 * sign(2) + 34 * sign(1) + 17 * sign(0)));
  }
  return levels;
}

ReferenceRun LevelRun(uint32_t row, uint32_t rows, uint32_t bits, double unit) {
  return {row, rows, bits, Levels(bits, unit), SpreadLevels(unit)};
}

std::vector<ReferenceRun> BasisRuns(const Basis& basis, uint32_t dim) {
  std::vector<ReferenceRun> runs;
  const auto rows = static_cast<uint32_t>(basis.rows.size() / dim);
  // Only ratios of the RMS matter: the largest is brought into [1, 2).
  const float largest = *std::max_element(basis.group_rms.begin(), basis.group_rms.end());
  const double unit = std::exp2(-std::floor(std::log2(double{largest})));
  for (uint32_t g = 0; g < basis.group_bits.size(); ++g) {
    const uint32_t bits = basis.group_bits[g];
    runs.push_back(LevelRun(32 * g, std::min(32u, rows - 32 * g), bits, unit * basis.group_rms[g]));
  }
  return runs;
}

Matrix BasisMatrix(const Basis& basis, uint32_t dim) {
  Matrix rows;
  for (size_t i = 0; i < basis.rows.size(); i += dim) {
    rows.emplace_back(basis.rows.begin() + i, basis.rows.begin() + i + dim);
  }
  return rows;
}

// Row i of the randomized Hadamard transform of `seed`.
std::vector<double> HadamardRow(uint64_t seed, uint32_t dim, uint32_t i) {
  std::vector<double> row(dim);
  for (uint32_t c = 0; c < dim; ++c) {
    const uint64_t index = uint64_t{i / dim} * ((dim + 63) / 64) + c / 64;
    const bool negative = (StreamWord(seed, index) >> (c % 64) & 1) != 0;
    row[c] = BlockEntry(dim, i % dim, c) * (negative ? -1.0 : 1.0);
  }
  return row;
}

// Reads the sections one after the other, in the order the README draws them.
class CellReader {
 public:
  CellReader(const KvLayout& layout, const CodecProfile& profile, const HeadTable& table,
             std::span<const std::byte> cell, uint32_t num_tokens)
      : layout_(layout), profile_(profile), table_(table), cell_(cell.data()) {
    tiles_ = Up(layout.block_tokens, 16) / 16;
    out_.num_tokens = num_tokens;
  }

  ReferenceCell Read(const Matrix& projection) {
    ReadScales();
    if (profile_.key_codec == KeyCodec::kRaw) {
      at_ = Up(at_, 64);
      out_.keys =
          ReferenceRows(cell_ + at_, layout_.head_dim * BytesOf(layout_.key_dtype),
                        layout_.key_dtype, layout_.key_scale, out_.num_tokens, layout_.head_dim);
      at_ += layout_.block_tokens * layout_.head_dim * BytesOf(layout_.key_dtype);
    } else {
      ReadPlanes();
      ReadOutliers();
      Reconstruct(projection);
    }
    at_ = Up(at_, 64);
    ReadValues();
    return std::move(out_);
  }

 private:
  // 16 bits that are a float's, its sign and lower mantissa left out.
  static double Scale(const std::byte* p) { return SmallFloat(ReadUint(p, 2), 8, 8); }

  bool rotated() const {
    return profile_.value_codec == ValueCodec::kRotated ||
           profile_.value_codec == ValueCodec::kBasis;
  }

  void ReadScales() {
    const bool keys = profile_.key_codec != KeyCodec::kRaw;
    const bool second = profile_.outlier_method == OutlierMethod::kSketch;
    const size_t rows = size_t{keys} + size_t{second} + size_t{rotated()};
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      size_t at = (t / 16) * rows * 32 + t % 16 * 2;
      const auto next = [&] {
        const double scale = Scale(cell_ + at);
        at += 32;
        return scale;
      };
      if (keys) out_.key_scales.push_back(next());
      if (second) out_.outlier_scales.push_back(next());
      if (rotated()) out_.value_scales.push_back({next()});
    }
    at_ = tiles_ * rows * 32;
  }

  // Word `word` of a token, in lines of sixteen tokens.
  uint64_t Word(size_t begin, size_t words, uint32_t t, size_t word) const {
    return ReadUint(cell_ + begin + ((t / 16) * words + word) * 64 + t % 16 * 4, 4);
  }

  void ReadPlanes() {
    out_.key_mean.assign(layout_.head_dim, 0.0);
    if (profile_.centering == Centering::kTable) {
      out_.key_mean.assign(table_.key_mean.begin(), table_.key_mean.end());
    } else if (profile_.centering == Centering::kBlock) {
      for (double& x : out_.key_mean) {
        x = SmallFloat(ReadUint(cell_ + at_, 2), 8, 7);
        at_ += 2;
      }
    }
    at_ = Up(at_, 64);
    const auto runs = ReferenceKeyRuns(profile_, layout_.head_dim, table_);
    const size_t words = (profile_.sign_bits + profile_.key_row_bits) / 32;
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row;
      size_t first = 0;
      for (const ReferenceRun& run : runs) {
        for (uint32_t i = 0; i < run.rows; ++i) {
          const auto bits_at = [&](size_t bit, size_t count) {
            return Word(at_, words, t, first + bit / 32) >> (bit % 32) & ((1u << count) - 1);
          };
          // Of 32 coordinates of 3 bits, 24 stand in a nibble each; of the other eight, bits 3 of
          // three nibbles, the code's highest bit first. Shorter runs likewise, three to one.
          const size_t piece = i / 32 * 96;
          const size_t in_piece = i % 32;
          const size_t in_all = std::min<size_t>(32, run.rows - i / 32 * 32);
          const size_t nibbles = in_all - in_all / 4;
          if (run.bits != 3) {
            row.push_back(run.levels[bits_at(size_t{i} * run.bits, run.bits)]);
          } else if (in_piece < nibbles) {
            row.push_back(run.levels[bits_at(piece + 4 * in_piece, 3)]);
          } else {
            const size_t at = piece + 12 * (in_piece - nibbles) + 3;
            row.push_back(run.spread_levels[4 * bits_at(at, 1) + 2 * bits_at(at + 4, 1) +
                                            bits_at(at + 8, 1)]);
          }
        }
        first += Up(run.rows * run.bits, 32) / 32;
      }
      out_.key_levels.push_back(row);
    }
    at_ += tiles_ * words * 64;
    const size_t outlier_words = profile_.outlier_sign_bits / 32;
    for (uint32_t t = 0; outlier_words > 0 && t < out_.num_tokens; ++t) {
      std::vector<double> row;
      for (uint32_t i = 0; i < profile_.outlier_sign_bits; ++i) {
        const uint64_t word = Word(at_, outlier_words, t, i / 32);
        row.push_back((word >> (i % 32) & 1) != 0 ? 1.0 : -1.0);
      }
      out_.outlier_signs.push_back(row);
    }
    at_ += tiles_ * outlier_words * 64;
  }

  void ReadOutliers() {
    const size_t outliers = profile_.num_outliers;
    const bool second = profile_.outlier_method == OutlierMethod::kSketch;
    const bool table = profile_.outlier_source == OutlierSource::kTable;
    const size_t groups =
        outliers == 0 || table ? 0 : (second ? Up(layout_.block_tokens, 32) / 32 : 1);
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<uint32_t> channels;
      if (table) channels = table_.outlier_channels;
      const size_t group = second ? t / 32 : 0;
      for (size_t o = 0; groups > 0 && o < outliers; ++o) {
        channels.push_back(
            static_cast<uint32_t>(ReadUint(cell_ + at_ + 2 * (group * outliers + o), 2)));
      }
      out_.channels.push_back(channels);
    }
    at_ += groups * outliers * 2;
    if (profile_.outlier_method != OutlierMethod::kResidual) return;
    const size_t codes = at_ + tiles_ * outliers * 2;
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row, scales;
      for (size_t o = 0; o < outliers; ++o) {
        const size_t index = (t / 16) * outliers + o;
        scales.push_back(Scale(cell_ + at_ + 2 * index));
        row.push_back(scales.back() * static_cast<int8_t>(cell_[codes + index * 16 + t % 16]));
      }
      residuals_.push_back(row);
      out_.residual_scales.push_back(scales);
    }
    at_ = codes + tiles_ * outliers * 16;
  }

  void Reconstruct(const Matrix& s) {
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> key = out_.key_mean;
      for (size_t i = 0; i < s.size(); ++i) {
        for (uint32_t c = 0; c < layout_.head_dim; ++c) {
          key[c] += out_.key_scales[t] * out_.key_levels[t][i] * s[i][c];
        }
      }
      for (uint32_t o = 0; o < profile_.num_outliers; ++o) {
        const uint32_t c = out_.channels[t][o];
        if (profile_.outlier_method == OutlierMethod::kResidual) {
          key[c] += residuals_[t][o];
          continue;
        }
        key[c] = 0.0;
        for (uint32_t i = 0; i < profile_.outlier_sign_bits; ++i) {
          key[c] += out_.outlier_scales[t] * out_.outlier_signs[t][i] * s[i][c];
        }
      }
      out_.keys.push_back(key);
    }
  }

  // The code of channel c of a run that begins at line `first`, of token t.
  size_t ValueCode(size_t first, size_t lines, const ReferenceRun& run, uint32_t c, uint32_t t) {
    const auto word = [&](size_t line) {
      return ReadUint(cell_ + at_ + ((t / 16) * lines + first + line) * 64 + c % 16 * 4, 4);
    };
    const uint32_t u = t % 16, byte = 8 * (u % 4), p = u / 4;
    const size_t sixteen = c / 16;
    const size_t sixteens = Up(run.rows, 16) / 16;
    if (run.bits == 8) return word(4 * sixteen + p) >> byte & 255;
    if (run.bits == 4) return word(2 * sixteen + p / 2) >> (byte + 4 * (p % 2)) & 15;
    size_t code = 0;
    if (run.bits >= 2) code = word(sixteen) >> (byte + 2 * p) & 3;
    if (run.bits % 2 == 1) {
      const size_t line = (run.bits == 3 ? sixteens : 0) + c / 32;
      code |= (word(line) >> (byte + 4 * (sixteen % 2) + p) & 1) << (run.bits - 1);
    }
    return code;
  }

  static size_t Lines(const ReferenceRun& run) {
    return Up(run.rows, 16) / 16 * (run.bits / 2) + Up(run.rows, 32) / 32 * (run.bits % 2);
  }

  void ReadValues() {
    const uint32_t dim = layout_.value_dim;
    if (layout_.value_source == ValueSource::kKeyPrefix) {
      for (const auto& key : out_.keys) out_.values.emplace_back(key.begin(), key.begin() + dim);
      return;
    }
    if (profile_.value_codec == ValueCodec::kRaw) {
      out_.values = ReferenceRows(cell_ + at_, dim * BytesOf(layout_.value_dtype),
                                  layout_.value_dtype, layout_.value_scale, out_.num_tokens, dim);
      return;
    }
    const auto runs = ReferenceValueRuns(profile_, dim, table_);
    size_t lines = 0;
    for (const ReferenceRun& run : runs) lines += Lines(run);
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row;
      size_t first = 0;
      for (const ReferenceRun& run : runs) {
        for (uint32_t c = 0; c < run.rows; ++c) {
          const size_t code = ValueCode(first, lines, run, c, t);
          row.push_back(run.levels.empty() ? static_cast<double>(code) : run.levels[code]);
        }
        first += Lines(run);
      }
      out_.value_levels.push_back(row);
    }
    at_ += tiles_ * lines * 64;
    if (rotated()) return TurnValues();
    const size_t groups = Up(dim, profile_.value_group_size) / profile_.value_group_size;
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row, scales;
      for (uint32_t c = 0; c < dim; ++c) {
        const size_t group = c / profile_.value_group_size;
        const std::byte* line = cell_ + at_ + ((t / 16) * groups + group) * 64 + (t % 16) * 2;
        const auto zero = static_cast<int16_t>(ReadUint(line + 32, 2));
        row.push_back(Scale(line) * (out_.value_levels[t][c] + zero / 16.0));
        if (c % profile_.value_group_size == 0) scales.push_back(Scale(line));
      }
      out_.values.push_back(row);
      out_.value_scales.push_back(scales);
    }
  }

  void TurnValues() {
    const Matrix s = ReferenceValueProjection(profile_, layout_.value_dim, table_);
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row(layout_.value_dim, 0.0);
      if (profile_.value_codec == ValueCodec::kBasis && !table_.value_mean.empty()) {
        row.assign(table_.value_mean.begin(), table_.value_mean.end());
      }
      for (size_t i = 0; i < s.size(); ++i) {
        for (uint32_t c = 0; c < layout_.value_dim; ++c) {
          row[c] += out_.value_scales[t][0] * out_.value_levels[t][i] * s[i][c];
        }
      }
      out_.values.push_back(row);
    }
  }

  const KvLayout& layout_;
  const CodecProfile& profile_;
  const HeadTable& table_;
  const std::byte* cell_;
  size_t at_ = 0;
  size_t tiles_ = 0;
  Matrix residuals_;
  ReferenceCell out_;
};

}  // namespace

std::vector<ReferenceRun> ReferenceKeyRuns(const CodecProfile& profile, uint32_t dim,
                                           const HeadTable& table) {
  if (profile.key_codec == KeyCodec::kSketch) return {{0, profile.sign_bits, 1, {-1.0, 1.0}, {}}};
  if (profile.projection == Projection::kBasis) return BasisRuns(table.key_basis, dim);
  return {LevelRun(0, dim, profile.code_bits, 1.0)};
}

std::vector<ReferenceRun> ReferenceValueRuns(const CodecProfile& profile, uint32_t dim,
                                             const HeadTable& table) {
  if (profile.value_codec == ValueCodec::kBasis) return BasisRuns(table.value_basis, dim);
  if (profile.value_codec == ValueCodec::kMinMax) return {{0, dim, profile.value_bits, {}, {}}};
  return {LevelRun(0, dim, profile.value_bits, 1.0)};
}

Matrix ReferenceProjection(const CodecProfile& profile, uint32_t dim, std::span<const float> dense,
                           const HeadTable& table) {
  if (profile.key_codec == KeyCodec::kRaw) return {};
  if (profile.projection == Projection::kBasis) return BasisMatrix(table.key_basis, dim);
  Matrix s;
  const uint32_t rows = profile.key_codec == KeyCodec::kSketch ? profile.sign_bits : dim;
  for (uint32_t i = 0; i < rows; ++i) {
    if (profile.projection == Projection::kHadamard) {
      s.push_back(HadamardRow(profile.seed, dim, i));
    } else {
      s.emplace_back(dense.begin() + size_t{i} * dim, dense.begin() + size_t{i + 1} * dim);
    }
  }
  return s;
}

Matrix ReferenceValueProjection(const CodecProfile& profile, uint32_t value_dim,
                                const HeadTable& table) {
  if (profile.value_codec == ValueCodec::kBasis) return BasisMatrix(table.value_basis, value_dim);
  Matrix s;
  if (profile.value_codec != ValueCodec::kRotated) return s;
  constexpr uint64_t kValue = 0x76616C7565;  // "value"
  for (uint32_t i = 0; i < value_dim; ++i) {
    s.push_back(HadamardRow(profile.seed ^ kValue, value_dim, i));
  }
  return s;
}

Matrix ReferenceRows(const std::byte* data, size_t stride_bytes, DType dtype, double scale,
                     uint32_t num_rows, uint32_t dim) {
  Matrix rows(num_rows, std::vector<double>(dim));
  for (uint32_t t = 0; t < num_rows; ++t) {
    for (uint32_t c = 0; c < dim; ++c) {
      rows[t][c] = scale * Element(data + t * stride_bytes + c * BytesOf(dtype), dtype);
    }
  }
  return rows;
}

ReferenceCell ReferenceParse(const KvLayout& layout, const CodecProfile& profile,
                             const HeadTable& table, const Matrix& projection,
                             std::span<const std::byte> cell, uint32_t num_tokens) {
  return CellReader(layout, profile, table, cell, num_tokens).Read(projection);
}

double ReferenceDot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

ReferenceAttention ReferenceAttend(const std::vector<double>& scores, const Matrix& values,
                                   uint32_t value_dim, const AttentionOptions& options) {
  ReferenceAttention result;
  result.out.assign(value_dim, 0.0);
  std::vector<double> logits;
  for (double score : scores) {
    double logit = options.softmax_scale * score;
    const double cap = options.logit_softcap;
    if (cap > 0) logit = cap * std::tanh(logit / cap);
    logits.push_back(logit);
  }
  result.lse = -std::numeric_limits<double>::infinity();
  if (logits.empty()) return result;
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - max);
  for (size_t t = 0; t < logits.size(); ++t) {
    const double weight = std::exp(logits[t] - max) / sum;
    for (uint32_t c = 0; c < value_dim; ++c) result.out[c] += weight * values[t][c];
  }
  result.lse = max + std::log(sum);
  return result;
}

}  // namespace sketchkv::testing
