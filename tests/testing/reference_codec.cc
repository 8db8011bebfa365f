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

// Reads the sections one after the other, in the order the README draws them.
class CellReader {
 public:
  CellReader(const KvLayout& layout, const CodecProfile& profile, std::span<const std::byte> cell)
      : layout_(layout), profile_(profile), cell_(cell.data()) {
    tiles_ = Up(layout.block_tokens, 16) / 16;
    out_.num_tokens = static_cast<uint32_t>(ReadUint(cell_ + 2, 2));
  }

  ReferenceCell Read(const Matrix& projection) {
    if (profile_.key_codec == KeyCodec::kSketch) {
      ReadSketch();
      Reconstruct(projection);
    } else {
      at_ = 64;
      out_.keys =
          ReferenceRows(cell_ + at_, layout_.head_dim * BytesOf(layout_.key_dtype),
                        layout_.key_dtype, layout_.key_scale, out_.num_tokens, layout_.head_dim);
      at_ += layout_.block_tokens * layout_.head_dim * BytesOf(layout_.key_dtype);
    }
    at_ = Up(at_, 64);
    ReadValues();
    return std::move(out_);
  }

 private:
  // 2^exponent of kind 0 keys, 1 outliers, 2 value scales, 3 minima.
  double Unit(int kind) const {
    const auto exponent = static_cast<int16_t>(ReadUint(cell_ + 4 + 2 * kind, 2));
    return std::ldexp(1.0, exponent);
  }

  void ReadSketch() {
    const uint32_t outliers = profile_.num_outliers;
    const bool second = profile_.outlier_method == OutlierMethod::kSketch;
    const bool residual = profile_.outlier_method == OutlierMethod::kResidual;
    at_ = 16;
    const size_t groups = second ? Up(layout_.block_tokens, 32) / 32 : residual ? 1 : 0;
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<uint32_t> channels;
      const size_t group = second ? t / 32 : 0;
      for (uint32_t o = 0; o < outliers; ++o) {
        channels.push_back(
            static_cast<uint32_t>(ReadUint(cell_ + at_ + 2 * (group * outliers + o), 2)));
      }
      out_.channels.push_back(channels);
    }
    at_ += groups * outliers * 2;
    for (uint32_t o = 0; residual && o < outliers; ++o, at_ += 2) {
      out_.outlier_scales.push_back(Half(cell_ + at_) * Unit(1));
    }
    out_.key_scales = TokenScales(Unit(0));
    if (second) out_.outlier_scales = TokenScales(Unit(1));
    at_ = Up(at_, 64);
    out_.signs = Signs(profile_.sign_bits);
    if (second) out_.outlier_signs = Signs(profile_.outlier_sign_bits);
    if (!residual) return;
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row;
      for (uint32_t o = 0; o < outliers; ++o) {
        const std::byte* p = cell_ + at_ + ((t / 16) * outliers + o) * 16 + t % 16;
        row.push_back(static_cast<int8_t>(*p) * out_.outlier_scales[o]);
      }
      residuals_.push_back(row);
    }
    at_ += tiles_ * outliers * 16;
  }

  std::vector<double> TokenScales(double unit) {
    std::vector<double> scales;
    for (uint32_t t = 0; t < out_.num_tokens; ++t)
      scales.push_back(Half(cell_ + at_ + 2 * t) * unit);
    at_ += tiles_ * 32;
    return scales;
  }

  std::vector<std::vector<int>> Signs(uint32_t bits) {
    std::vector<std::vector<int>> signs(out_.num_tokens, std::vector<int>(bits));
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      for (uint32_t i = 0; i < bits; ++i) {
        const size_t line = (t / 16) * (bits / 32) + i / 32;
        const uint64_t word = ReadUint(cell_ + at_ + line * 64 + (t % 16) * 4, 4);
        signs[t][i] = (word >> (i % 32) & 1) != 0 ? 1 : -1;
      }
    }
    at_ += tiles_ * (bits / 32) * 64;
    return signs;
  }

  void Reconstruct(const Matrix& s) {
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> key(layout_.head_dim, 0.0);
      for (uint32_t i = 0; i < profile_.sign_bits; ++i) {
        for (uint32_t c = 0; c < layout_.head_dim; ++c) {
          key[c] += out_.key_scales[t] * out_.signs[t][i] * s[i][c];
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
    const uint32_t bits = profile_.value_bits;
    const size_t row_bytes = size_t{dim} * bits / 8;
    const size_t lines = Up(at_ + layout_.block_tokens * row_bytes, 64);
    const size_t groups = Up(dim, profile_.value_group_size) / profile_.value_group_size;
    for (uint32_t t = 0; t < out_.num_tokens; ++t) {
      std::vector<double> row, scales;
      for (uint32_t c = 0; c < dim; ++c) {
        const size_t bit = size_t{c} * bits;
        const uint64_t byte = ReadUint(cell_ + at_ + t * row_bytes + bit / 8, 1);
        const auto code = static_cast<double>(byte >> (bit % 8) & ((1u << bits) - 1));
        const size_t group = c / profile_.value_group_size;
        const std::byte* line = cell_ + lines + ((t / 16) * groups + group) * 64 + (t % 16) * 2;
        const double scale = Half(line) * Unit(2);
        row.push_back(code * scale + Half(line + 32) * Unit(3));
        if (c % profile_.value_group_size == 0) scales.push_back(scale);
      }
      out_.values.push_back(row);
      out_.value_scales.push_back(scales);
    }
  }

  const KvLayout& layout_;
  const CodecProfile& profile_;
  const std::byte* cell_;
  size_t at_ = 0;
  size_t tiles_ = 0;
  Matrix residuals_;
  ReferenceCell out_;
};

}  // namespace

Matrix ReferenceProjection(const CodecProfile& profile, uint32_t dim,
                           std::span<const float> dense) {
  Matrix s(profile.sign_bits, std::vector<double>(dim));
  for (uint32_t i = 0; i < profile.sign_bits; ++i) {
    for (uint32_t c = 0; c < dim; ++c) {
      if (profile.projection != Projection::kHadamard) {
        s[i][c] = dense[size_t{i} * dim + c];
        continue;
      }
      const uint64_t index = uint64_t{i / dim} * ((dim + 63) / 64) + c / 64;
      const bool negative = (StreamWord(profile.seed, index) >> (c % 64) & 1) != 0;
      s[i][c] = BlockEntry(dim, i % dim, c) * (negative ? -1.0 : 1.0);
    }
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
                             const Matrix& projection, std::span<const std::byte> cell) {
  return CellReader(layout, profile, cell).Read(projection);
}

double ReferenceDot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

ReferenceAttention ReferenceAttend(const std::vector<double>& query, const Matrix& keys,
                                   const Matrix& values, uint32_t value_dim,
                                   const AttentionOptions& options) {
  ReferenceAttention result;
  result.out.assign(value_dim, 0.0);
  std::vector<double> logits;
  for (const auto& key : keys) {
    double logit = options.softmax_scale * ReferenceDot(query, key);
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
