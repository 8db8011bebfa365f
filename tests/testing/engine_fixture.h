#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "service/engine/checksum.h"
#include "service/engine/engine.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/manual_executor.h"
#include "tests/testing/random_tables.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {

inline BlockHash TestHash(uint64_t n) {
  uint8_t bytes[20] = {};
  std::memcpy(bytes, &n, sizeof(n));
  return *BlockHash::FromBytes(bytes);
}

inline std::span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

inline bool operator==(const Payload& a, const std::string& b) { return a.ToString() == b; }
inline bool operator==(const Payload& a, const Payload& b) { return a.ToString() == b.ToString(); }

// What an engine made, whole, with its checksum.
struct Part {
  PartLayout layout;
  std::optional<RawPartFormat> raw;
  Payload payload;
};

class CollectingSink final : public PartSink {
 public:
  void Begin(const PartLayout& layout, const std::optional<RawPartFormat>& raw,
             uint64_t payload_bytes) override {
    part_.layout = layout;
    part_.raw = raw;
    payload_bytes_ = payload_bytes;
  }
  void Append(const Payload& bytes) override { part_.payload.Append(bytes); }

  // Of a call that gave its part to this.
  absl::StatusOr<Part> Finish(const absl::StatusOr<uint64_t>& checksum) {
    if (!checksum.ok()) return checksum.status();
    EXPECT_EQ(part_.payload.size(), payload_bytes_);
    EXPECT_EQ(PayloadChecksum(part_.payload), *checksum);
    part_.layout.checksum = *checksum;
    return part_;
  }

 private:
  Part part_;
  uint64_t payload_bytes_ = 0;
};

inline absl::StatusOr<Part> GetPart(Engine& engine, const Engine::GetRequest& request) {
  CollectingSink sink;
  return sink.Finish(engine.Get(0, request, &sink));
}
inline absl::StatusOr<Part> EncodePart(Engine& engine, const Model& model, const PartLayout& part,
                                       const Payload& payload) {
  CollectingSink sink;
  return sink.Finish(engine.Encode(model, part, payload, &sink));
}
inline absl::StatusOr<Part> DecodePart(Engine& engine, const Model& model, const PartLayout& part,
                                       const Payload& payload, DType dtype, RawOrder order) {
  CollectingSink sink;
  return sink.Finish(engine.Decode(model, part, payload, dtype, order, &sink));
}

// A raw fp32 payload of `range` in the order NHD, and its numbers by name.
struct RawPart {
  PartLayout layout;
  std::string payload;
};

inline RawPart RandomPart(const Model& model, CellRange range, uint32_t num_tokens, uint64_t seed,
                          RawOrder order = RawOrder::kNhd) {
  RawPart part;
  part.layout.range = *ResolveRange(range, model.layout());
  part.layout.num_tokens = num_tokens;
  part.layout.raw_order = order;
  const RawPartFormat format(model.layout(), part.layout.range, num_tokens, order);
  part.payload.resize(format.total_bytes());
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < part.payload.size(); i += sizeof(float)) {
    const float x = normal(random);
    std::memcpy(part.payload.data() + i, &x, sizeof(x));
  }
  part.layout.checksum = PayloadChecksum(Bytes(part.payload));
  return part;
}

// [layers][kv_heads], as TableStore::Add takes them.
inline std::vector<HeadTable> RandomHeads(const KvLayout& layout, uint32_t num_outliers = 0,
                                          uint64_t seed = 1) {
  const auto tables = testing::RandomTables(layout, num_outliers, seed);
  std::vector<HeadTable> heads;
  for (uint32_t layer = 0; layer < layout.num_layers; ++layer) {
    for (uint32_t head = 0; head < layout.num_kv_heads; ++head) {
      heads.push_back(tables->at(layer, head));
    }
  }
  return heads;
}

// Attention in double, the obvious way: keys and values as [tokens][dim] of one head.
struct DoubleAttention {
  std::vector<double> out;
  double lse = -std::numeric_limits<double>::infinity();
};
inline DoubleAttention AttendInDouble(const std::vector<std::vector<double>>& keys,
                                      const std::vector<std::vector<double>>& values,
                                      const std::vector<double>& query, double scale,
                                      double softcap, size_t value_dim) {
  std::vector<double> logits;
  for (const auto& key : keys) {
    double dot = 0;
    for (size_t c = 0; c < query.size(); ++c) dot += key[c] * query[c];
    dot *= scale;
    if (softcap > 0) dot = softcap * std::tanh(dot / softcap);
    logits.push_back(dot);
  }
  DoubleAttention result{.out = std::vector<double>(value_dim, 0.0)};
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit);
  for (size_t t = 0; t < logits.size(); ++t) {
    for (size_t c = 0; c < value_dim; ++c) {
      result.out[c] += std::exp(logits[t]) / sum * values[t][c];
    }
  }
  if (!logits.empty()) result.lse = std::log(sum);
  return result;
}

// An engine over a pool, without threads.
struct EngineFixture {
  explicit EngineFixture(size_t budget_bytes = size_t{64} << 20, Isa isa = Isa::kScalar)
      : pool({.budget_bytes = budget_bytes}, &clock),
        models(isa),
        engine(&models, &pool, &executor) {}

  // With random tables where the profile needs some.
  std::shared_ptr<const Model> Register(const std::string& name, const KvLayout& layout,
                                        const std::string& profile) {
    LayerProfileRequest request;
    request.profile.name = profile;
    std::optional<Digest128> digest;
    if (profile == "klt") digest = models.tables().Add(0, layout, RandomHeads(layout))->digest;
    return *models.Register(0, name, layout, {request}, digest);
  }
  // `parent` 0: a root.
  absl::StatusOr<Engine::PutResult> Put(const std::shared_ptr<const Model>& model, uint64_t hash,
                                        uint64_t parent, const RawPart& part) {
    Engine::PutRequest request{.model = model,
                               .hash = TestHash(hash),
                               .part = part.layout,
                               .payload = Bytes(part.payload)};
    if (parent != 0) request.parent = TestHash(parent);
    return engine.Put(0, request);
  }

  FakeClock clock;
  BlockPool pool;
  ModelRegistry models;
  ManualExecutor executor;
  Engine engine;
};

}  // namespace sketchkv
