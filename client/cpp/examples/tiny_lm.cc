#include "client/cpp/examples/tiny_lm.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "client/cpp/examples/matrix.h"
#include "client/cpp/examples/tiny_lm_weights.h"
#include "kernels/base/status_macros.h"
#include "sketchkv/attention.h"

namespace sketchkv::example {
namespace {

constexpr size_t kThreads = 2;
constexpr size_t kGrain = 16;  // positions a thread takes at least

// out[n, columns] = x[n, inner] weights[inner, columns]
std::vector<float> Project(const std::vector<float>& x, const std::vector<float>& weights,
                           size_t inner, size_t columns) {
  const size_t rows = x.size() / inner;
  std::vector<float> out(rows * columns, 0.0f);
  ParallelFor(rows, kGrain, kThreads, [&](size_t begin, size_t end) {
    MultiplyAdd(x.data() + begin * inner, inner, weights.data(), columns,
                out.data() + begin * columns, columns, end - begin, inner, columns);
  });
  return out;
}

// x / sqrt(mean(x^2) + eps) * weight, position by position.
std::vector<float> RmsNorm(const std::vector<float>& x, const std::vector<float>& weight,
                           float eps) {
  const size_t hidden = weight.size();
  std::vector<float> out(x.size());
  for (size_t row = 0; row < x.size(); row += hidden) {
    double squares = 0.0;
    for (size_t i = 0; i < hidden; ++i) squares += double{x[row + i]} * x[row + i];
    const float inverse = static_cast<float>(1.0 / std::sqrt(squares / hidden + eps));
    for (size_t i = 0; i < hidden; ++i) out[row + i] = x[row + i] * inverse * weight[i];
  }
  return out;
}

void AddTo(std::vector<float>* x, const std::vector<float>& y) {
  for (size_t i = 0; i < x->size(); ++i) (*x)[i] += y[i];
}

// Rotates channel pairs (i, i + head_dim/2) of x [n, heads, head_dim] by position / theta^(2i/dim).
void Rope(std::vector<float>* x, size_t heads, size_t dim, uint32_t first_position, float theta) {
  const size_t half = dim / 2, positions = x->size() / (heads * dim);
  std::vector<float> cosines(half), sines(half);
  for (size_t p = 0; p < positions; ++p) {
    for (size_t i = 0; i < half; ++i) {
      const double frequency = std::pow(double{theta}, -2.0 * static_cast<double>(i) / dim);
      const double angle = static_cast<double>(first_position + p) * frequency;
      cosines[i] = static_cast<float>(std::cos(angle));
      sines[i] = static_cast<float>(std::sin(angle));
    }
    for (size_t head = 0; head < heads; ++head) {
      float* row = x->data() + (p * heads + head) * dim;
      for (size_t i = 0; i < half; ++i) {
        const float a = row[i], b = row[i + half];
        row[i] = a * cosines[i] - b * sines[i];
        row[i + half] = b * cosines[i] + a * sines[i];
      }
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<TinyLm>> TinyLm::Load(const std::string& dir) {
  std::unique_ptr<TinyLm> model(new TinyLm);
  SKETCHKV_ASSIGN_OR_RETURN(model->config_, ReadConfig(dir + "/config.json"));
  const TinyLmConfig& c = model->config_;
  SKETCHKV_ASSIGN_OR_RETURN(WeightReader weights, WeightReader::Open(dir + "/model.safetensors"));
  const size_t query = size_t{c.query_heads} * c.head_dim, kv = size_t{c.kv_heads} * c.head_dim;
  model->embedding_ = weights.Read("model.embed_tokens.weight", {c.vocab, c.hidden});
  model->output_ = weights.ReadTransposed("model.embed_tokens.weight", c.vocab, c.hidden);
  model->final_norm_ = weights.Read("model.norm.weight", {c.hidden});
  for (uint32_t i = 0; i < c.layers; ++i) {
    const std::string at = absl::StrCat("model.layers.", i, ".");
    Layer& layer = model->layers_.emplace_back();
    layer.input_norm = weights.Read(at + "input_layernorm.weight", {c.hidden});
    layer.post_norm = weights.Read(at + "post_attention_layernorm.weight", {c.hidden});
    layer.q = weights.ReadTransposed(at + "self_attn.q_proj.weight", query, c.hidden);
    layer.k = weights.ReadTransposed(at + "self_attn.k_proj.weight", kv, c.hidden);
    layer.v = weights.ReadTransposed(at + "self_attn.v_proj.weight", kv, c.hidden);
    layer.o = weights.ReadTransposed(at + "self_attn.o_proj.weight", c.hidden, query);
    layer.gate = weights.ReadTransposed(at + "mlp.gate_proj.weight", c.feed_forward, c.hidden);
    layer.up = weights.ReadTransposed(at + "mlp.up_proj.weight", c.feed_forward, c.hidden);
    layer.down = weights.ReadTransposed(at + "mlp.down_proj.weight", c.hidden, c.feed_forward);
  }
  SKETCHKV_RETURN_IF_ERROR(weights.status());
  return model;
}

absl::Status TinyLm::Forward(std::span<const uint8_t> tokens, PastKv* past, LocalKv* recent,
                             std::vector<float>* logits) const {
  const size_t first = (past == nullptr ? 0 : past->num_tokens()) + recent->num_tokens();
  if (tokens.empty()) return absl::InvalidArgumentError("tokens: 0, at least 1 is needed");
  if (first + tokens.size() > config_.context) {
    return absl::InvalidArgumentError(absl::StrCat("tokens: position ", first + tokens.size() - 1,
                                                   " is outside the context of ", config_.context));
  }
  std::vector<float> x(tokens.size() * config_.hidden);
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::copy_n(embedding_.begin() + tokens[i] * size_t{config_.hidden}, config_.hidden,
                x.begin() + i * config_.hidden);
  }
  for (uint32_t layer = 0; layer < config_.layers; ++layer) {
    SKETCHKV_RETURN_IF_ERROR(AttentionBlock(layer, static_cast<uint32_t>(first), past, recent, &x));
    FeedForwardBlock(layer, &x);
  }
  *logits =
      Project(RmsNorm(x, final_norm_, config_.rms_eps), output_, config_.hidden, config_.vocab);
  return absl::OkStatus();
}

// x += o_proj(attention(rms(x))), the attention merged from the past and the recent tokens.
absl::Status TinyLm::AttentionBlock(uint32_t index, uint32_t first_position, PastKv* past,
                                    LocalKv* recent, std::vector<float>* x) const {
  const Layer& layer = layers_[index];
  const size_t dim = config_.head_dim, heads = config_.query_heads, kv_heads = config_.kv_heads;
  const std::vector<float> normed = RmsNorm(*x, layer.input_norm, config_.rms_eps);
  std::vector<float> q = Project(normed, layer.q, config_.hidden, heads * dim);
  std::vector<float> k = Project(normed, layer.k, config_.hidden, kv_heads * dim);
  const std::vector<float> v = Project(normed, layer.v, config_.hidden, kv_heads * dim);
  Rope(&q, heads, dim, first_position, config_.rope_theta);
  Rope(&k, kv_heads, dim, first_position, config_.rope_theta);

  const uint32_t first_recent = recent->num_tokens(index);
  recent->Append(index, k, v);
  std::vector<float> out(q.size()), lse(q.size() / dim);
  recent->AttendCausal(index, first_recent, q, out, lse);
  if (past != nullptr && past->num_tokens() > 0) {
    std::vector<float> past_out(q.size()), past_lse(lse.size());
    SKETCHKV_RETURN_IF_ERROR(past->Attend(index, q, past_out, past_lse));
    if (!MergeAttention(out, lse, past_out, past_lse, dim)) {
      return absl::InternalError(
          absl::StrCat("merge of ", out.size(), " and ", past_out.size(), " outputs does not fit"));
    }
  }
  AddTo(x, Project(out, layer.o, heads * dim, config_.hidden));
  return absl::OkStatus();
}

// x += down(silu(gate(rms(x))) * up(rms(x)))
void TinyLm::FeedForwardBlock(uint32_t index, std::vector<float>* x) const {
  const Layer& layer = layers_[index];
  const std::vector<float> normed = RmsNorm(*x, layer.post_norm, config_.rms_eps);
  std::vector<float> gate = Project(normed, layer.gate, config_.hidden, config_.feed_forward);
  const std::vector<float> up = Project(normed, layer.up, config_.hidden, config_.feed_forward);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  AddTo(x, Project(gate, layer.down, config_.feed_forward, config_.hidden));
}

}  // namespace sketchkv::example
