#include "tests/testing/fake_gpu.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/status_macros.h"
#include "kernels/base/xxh3.h"
#include "service/engine/cell_source.h"
#include "service/engine/raw_answer.h"

namespace sketchkv::testing {
namespace {

constexpr std::byte kGarbage{0xA5};

// The cells of kv head `head`, counted from the query's first, that hold the query's tokens.
std::vector<CellTokens> CellsOf(const GpuQuery& query, uint32_t head) {
  const BlockCodec& codec = *query.model->codec;
  const uint32_t block_tokens = codec.layout().block_tokens;
  std::vector<CellTokens> cells;
  for (uint32_t token = query.token_begin; token < query.token_end;) {
    const uint32_t block = token / block_tokens;
    const uint32_t end = std::min(query.token_end, (block + 1) * block_tokens);
    cells.push_back(
        {query.blocks->slots[block] + codec.cell_offset(query.layer, query.head_begin + head),
         token - block * block_tokens, end - block * block_tokens});
    token = end;
  }
  return cells;
}

// Calls use(codec, queries of the head, row of the request's order for each of them).
template <typename Use>
void EachHead(const GpuQuery& query, const Use& use) {
  const uint32_t dim = query.model->layout().head_dim;
  const uint32_t group = query.queries_per_kv_head;
  for (uint32_t head = 0; head < query.head_count; ++head) {
    std::vector<size_t> rows;
    std::vector<float> queries;
    for (uint32_t row = 0; row < query.num_query_tokens * group; ++row) {
      rows.push_back(size_t{row / group} * query.head_count * group + head * group + row % group);
      const float* const from = query.queries + rows.back() * dim;
      queries.insert(queries.end(), from, from + dim);
    }
    const CellCodec& codec = query.model->codec->cell(query.layer, query.head_begin + head);
    use(head, codec, *codec.PrepareQueries(queries), rows);
  }
}

absl::Status CheckFinite(const GpuQuery& query) {
  const size_t count = size_t{query.num_query_tokens} * query.head_count *
                       query.queries_per_kv_head * query.model->layout().head_dim;
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(query.queries[i])) return absl::InvalidArgumentError("a query on the card");
  }
  return absl::OkStatus();
}

}  // namespace

FakeGpu::FakeGpu(size_t tier_bytes) : memory_(tier_bytes + 4096, kGarbage) {}

void FakeGpu::Break() {
  broken_ = true;
  std::fill(memory_.begin(), memory_.end(), kGarbage);
}

absl::Status FakeGpu::Alive() const {
  return broken_ ? absl::UnavailableError("the fake card is broken") : absl::OkStatus();
}

std::vector<std::span<std::byte>> FakeGpu::TierMemory() const {
  auto* const data = const_cast<std::byte*>(memory_.data());
  const size_t skip = -reinterpret_cast<uintptr_t>(data) % 4096;
  return {{data + skip, memory_.size() - 4096}};
}

absl::Status FakeGpu::CopyToHost(std::span<const std::byte> from, std::byte* to) {
  ++copies_down;
  if (!Alive().ok()) return Alive();
  std::copy(from.begin(), from.end(), to);
  return absl::OkStatus();
}

absl::Status FakeGpu::CopyToGpu(std::span<const std::byte> from, std::byte* to) {
  ++copies_up;
  if (on_copy_up) on_copy_up();
  if (!Alive().ok()) return Alive();
  std::copy(from.begin(), from.end(), to);
  return absl::OkStatus();
}

absl::Status FakeGpu::Attend(std::span<const GpuAttention> jobs, Place place, const Patience&) {
  ++attentions;
  if (place == Place::kGpu) ++attentions_in_place;
  if (!Alive().ok()) return Alive();
  for (const GpuAttention& job : jobs) {
    SKETCHKV_RETURN_IF_ERROR(CheckFinite(job.query));
    const uint32_t value_dim = job.query.model->layout().value_dim;
    EachHead(job.query, [&](uint32_t head, const CellCodec& codec, const PreparedQueries& queries,
                            const std::vector<size_t>& rows) {
      AttentionPartial partial = codec.NewPartial(queries.num_queries());
      codec.Attend(CellsOf(job.query, head), queries, job.options, &partial);
      std::vector<float> out(rows.size() * value_dim), lse(rows.size());
      codec.Finish(partial, out.data(), lse.data());
      for (size_t i = 0; i < rows.size(); ++i) {
        std::copy_n(out.data() + i * value_dim, value_dim, job.out + rows[i] * value_dim);
        job.lse[rows[i]] = lse[i];
      }
    });
  }
  return absl::OkStatus();
}

absl::Status FakeGpu::Score(std::span<const GpuScores> jobs, const Patience&) {
  ++scores;
  if (!Alive().ok()) return Alive();
  for (const GpuScores& job : jobs) {
    const size_t count = job.query.token_end - job.query.token_begin;
    EachHead(job.query, [&](uint32_t head, const CellCodec& codec, const PreparedQueries& queries,
                            const std::vector<size_t>& rows) {
      std::vector<float> scores(rows.size() * count);
      codec.Score(CellsOf(job.query, head), queries, scores.data(), count);
      for (size_t i = 0; i < rows.size(); ++i) {
        std::copy_n(scores.data() + i * count, count, job.scores + rows[i] * job.stride);
      }
    });
  }
  return absl::OkStatus();
}

std::span<std::byte> FakeGpu::CellIn(const GpuPart& part, const WriteHandle::Cell& cell) {
  std::byte* const slot = part.slot != nullptr ? part.slot : part.host_slot;
  return {slot + part.model->codec->cell_offset(cell.layer, cell.head),
          part.model->codec->cell_bytes(cell.layer)};
}

absl::Status FakeGpu::Encode(std::span<GpuEncoding> parts) {
  ++encodes;
  if (on_encode) on_encode();
  if (!Alive().ok()) return Alive();
  for (GpuEncoding& one : parts) one.refused = EncodePart(one.part, one.payload);
  return absl::OkStatus();
}

absl::Status FakeGpu::EncodePart(const GpuPart& part, const std::byte* payload) {
  const RawPartFormat format(part.model->layout(), part.layout.range, part.layout.num_tokens,
                             part.layout.raw_order);
  for (size_t i = 0; i < part.cells.size(); ++i) {
    const auto& [layer, head] = part.cells[i];
    const std::span<std::byte> cell = CellIn(part, part.cells[i]);
    const absl::Status encoded =
        part.model->codec->cell(layer, head)
            .Encode(format.Keys(payload, layer, head), format.Values(payload, layer, head),
                    part.layout.num_tokens, cell);
    SKETCHKV_RETURN_IF_ERROR(AtCell(part.cells[i], encoded));
    part.checksums[i] =
        static_cast<uint32_t>(XXH3_64bits_withSeed(cell.data(), cell.size(), part.seeds[i]));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> FakeGpu::EncodeFromHost(const GpuPart& part, const Payload& payload,
                                             const std::function<void(uint64_t end)>& reading,
                                             absl::Status* refused) {
  if (!takes_host_rows) return false;
  ++host_encodes;
  std::vector<std::byte> rows(payload.size());
  reading(rows.size());
  payload.CopyTo(0, rows);
  if (on_encode) on_encode();
  if (!Alive().ok()) return Alive();
  *refused = EncodePart(part, rows.data());
  // As a card does, which does not tell NaN from Inf.
  if (!refused->ok()) *refused = absl::InvalidArgumentError("something is not finite");
  return true;
}

absl::Status FakeGpu::Decode(const GpuPart& part, DType dtype, std::byte* payload) {
  ++decodes;
  if (!Alive().ok()) return Alive();
  const RawAnswer answer{*part.model, part.layout.range, part.layout.num_tokens, dtype,
                         part.layout.raw_order};
  for (size_t i = 0; i < part.cells.size(); ++i) {
    const std::span<const std::byte> cell = CellIn(part, part.cells[i]);
    part.checksums[i] =
        static_cast<uint32_t>(XXH3_64bits_withSeed(cell.data(), cell.size(), part.seeds[i]));
    (void)answer.DecodeCell(answer.Format(part.layout.range), part.cells[i], cell, payload);
  }
  return absl::OkStatus();
}

absl::StatusOr<GpuBytes> FakeGpu::OpenShared(const GpuIpcHandle& handle) {
  if (!Alive().ok()) return Alive();
  const auto it = shared_.find(handle);
  if (it == shared_.end()) return absl::InvalidArgumentError("the fake card knows no such handle");
  return GpuBytes{.bytes = it->second, .owner = opened_};
}

}  // namespace sketchkv::testing
