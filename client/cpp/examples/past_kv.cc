#include "client/cpp/examples/past_kv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "client/cpp/examples/matrix.h"
#include "client/cpp/files/float_formats.h"

namespace sketchkv::example {
namespace {

constexpr size_t kQueryTile = 32;  // query tokens whose logits are computed together
constexpr size_t kThreads = 2;

// Turns logits [0, visible) into weights that sum to 1 and zeroes the rest; returns log-sum-exp.
float SoftmaxRow(float* row, size_t visible, size_t columns) {
  std::fill(row + visible, row + columns, 0.0f);
  if (visible == 0) return -std::numeric_limits<float>::infinity();
  const float max = *std::max_element(row, row + visible);
  float sum = 0.0f;
  for (size_t t = 0; t < visible; ++t) {
    row[t] = std::exp(row[t] - max);
    sum += row[t];
  }
  for (size_t t = 0; t < visible; ++t) row[t] /= sum;
  return max + std::log(sum);
}

}  // namespace

LocalKv::LocalKv(const KvShape& shape, uint32_t capacity, CacheRounding rounding)
    : shape_(shape), capacity_(capacity), rounding_(rounding), layers_(shape.num_layers) {
  for (Layer& layer : layers_) {
    layer.keys.resize(size_t{shape.kv_heads} * shape.head_dim * capacity);
    layer.values.resize(layer.keys.size());
  }
}

void LocalKv::Append(uint32_t layer_index, std::span<const float> keys,
                     std::span<const float> values) {
  Layer& layer = layers_[layer_index];
  const size_t dim = shape_.head_dim;
  const size_t count = keys.size() / (shape_.kv_heads * dim);
  const auto rounded = [this](float x) {
    return rounding_ == CacheRounding::kBf16 ? Bf16ToFloat(FloatToBf16(x)) : x;
  };
  for (size_t i = 0; i < count; ++i) {
    const size_t token = layer.num_tokens + i;
    for (size_t head = 0; head < shape_.kv_heads; ++head) {
      const size_t row = (i * shape_.kv_heads + head) * dim;
      for (size_t c = 0; c < dim; ++c) {
        layer.keys[(head * dim + c) * capacity_ + token] = rounded(keys[row + c]);
        layer.values[(head * capacity_ + token) * dim + c] = rounded(values[row + c]);
      }
    }
  }
  layer.num_tokens += static_cast<uint32_t>(count);
}

void LocalKv::AppendBf16(uint32_t layer, std::span<const std::byte> payload) {
  std::vector<uint16_t> bits(payload.size() / sizeof(uint16_t));
  std::memcpy(bits.data(), payload.data(), bits.size() * sizeof(uint16_t));
  std::vector<float> numbers(bits.size());
  std::transform(bits.begin(), bits.end(), numbers.begin(), Bf16ToFloat);
  const std::span<const float> all(numbers);
  Append(layer, all.first(all.size() / 2), all.last(all.size() / 2));
}

std::vector<std::byte> LocalKv::ExportBf16(uint32_t layer_index, uint32_t begin,
                                           uint32_t count) const {
  const Layer& layer = layers_[layer_index];
  const size_t dim = shape_.head_dim;
  const size_t half = size_t{count} * shape_.kv_heads * dim;
  std::vector<uint16_t> bits(2 * half);
  size_t at = 0;
  for (size_t token = begin; token < size_t{begin} + count; ++token) {
    for (size_t head = 0; head < shape_.kv_heads; ++head) {
      for (size_t c = 0; c < dim; ++c, ++at) {
        bits[at] = FloatToBf16(layer.keys[(head * dim + c) * capacity_ + token]);
        bits[half + at] = FloatToBf16(layer.values[(head * capacity_ + token) * dim + c]);
      }
    }
  }
  std::vector<std::byte> payload(bits.size() * sizeof(uint16_t));
  std::memcpy(payload.data(), bits.data(), payload.size());
  return payload;
}

absl::Status LocalKv::Attend(uint32_t layer, std::span<const float> queries, std::span<float> out,
                             std::span<float> lse) {
  AttendRows(layers_[layer], layers_[layer].num_tokens, 0, queries, out, lse);
  return absl::OkStatus();
}

void LocalKv::AttendCausal(uint32_t layer, uint32_t first_token, std::span<const float> queries,
                           std::span<float> out, std::span<float> lse) const {
  AttendRows(layers_[layer], first_token + 1, 1, queries, out, lse);
}

void LocalKv::AttendRows(const Layer& layer, uint32_t visible, uint32_t visible_step,
                         std::span<const float> queries, std::span<float> out,
                         std::span<float> lse) const {
  const size_t dim = shape_.head_dim, heads = shape_.query_heads;
  const size_t row_floats = heads * dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const auto seen = [&](size_t token) {
    return std::min<size_t>(visible + token * visible_step, layer.num_tokens);
  };
  std::fill(out.begin(), out.end(), 0.0f);
  ParallelFor(queries.size() / row_floats, kQueryTile, kThreads, [&](size_t begin, size_t end) {
    std::vector<float> logits, scaled(kQueryTile * dim);
    for (size_t first = begin; first < end; first += kQueryTile) {
      const size_t rows = std::min(kQueryTile, end - first);
      const size_t columns = seen(first + rows - 1);
      for (size_t head = 0; head < heads; ++head) {
        const size_t kv_head = head / (heads / shape_.kv_heads);
        for (size_t r = 0; r < rows; ++r) {
          const float* query = &queries[(first + r) * row_floats + head * dim];
          for (size_t c = 0; c < dim; ++c) scaled[r * dim + c] = query[c] * scale;
        }
        logits.assign(rows * columns, 0.0f);
        MultiplyAdd(scaled.data(), dim, &layer.keys[kv_head * dim * capacity_], capacity_,
                    logits.data(), columns, rows, dim, columns);
        for (size_t r = 0; r < rows; ++r) {
          lse[(first + r) * heads + head] =
              SoftmaxRow(logits.data() + r * columns, seen(first + r), columns);
        }
        MultiplyAdd(logits.data(), columns, &layer.values[kv_head * capacity_ * dim], dim,
                    &out[first * row_floats + head * dim], row_floats, rows, columns, dim);
      }
    }
  });
}

}  // namespace sketchkv::example
