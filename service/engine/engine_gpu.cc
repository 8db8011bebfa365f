// The use cases over memory on the card that is not the pool's: a worker's, shared by it.

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "service/engine/attention_gpu.h"
#include "service/engine/cell_source.h"
#include "service/engine/checksum.h"
#include "service/engine/engine.h"
#include "service/engine/raw_answer.h"

namespace sketchkv {
namespace {

std::vector<uint64_t> SeedsOf(const CellChecksummer& checksummer,
                              std::span<const WriteHandle::Cell> cells) {
  std::vector<uint64_t> seeds;
  seeds.reserve(cells.size());
  for (const auto& [layer, head] : cells) seeds.push_back(checksummer.SeedOf(layer, head));
  return seeds;
}

// Whether the card alone answers, and each item in one piece.
bool AllOnGpu(const AttentionTargets& targets) {
  for (const auto& target : targets) {
    if (!target->host_ranges.empty() || target->gpu_runs.size() != 1) return false;
  }
  return true;
}

}  // namespace

std::vector<uint64_t> Engine::PendingPut::Seeds() const {
  return SeedsOf(CellChecksummer(key, request->part.num_tokens), handle.claimed());
}

GpuPart Engine::PendingPut::Part(std::span<const uint64_t> seeds) {
  GpuPart part{.model = request->model,
               .layout = request->part,
               .cells = handle.claimed(),
               .slot = handle.gpu_slot().data(),
               .host_slot = handle.slot().data(),
               .seeds = seeds,
               .checksums = checksums};
  part.layout.range = range;
  return part;
}

bool Engine::CodesOnGpu(const std::shared_ptr<const Model>& model) {
  return gpu_ != nullptr && gpu_->Serves(model);
}

absl::Status Engine::CheckGpu() const {
  if (gpu_ == nullptr) return absl::UnavailableError("this server has no GPU");
  return gpu_->failed() ? absl::UnavailableError("the GPU of this server has failed")
                        : absl::OkStatus();
}

absl::Status Engine::NoteGpu(absl::Status status) {
  if (absl::IsUnavailable(status)) gpu_->Fail(status);
  return status;
}

absl::StatusOr<Engine::PutRequest> Engine::CopyPayloadToHost(const PutRequest& request) {
  SKETCHKV_RETURN_IF_ERROR(CheckGpu());
  PutRequest copied = request;
  copied.gpu_payload = std::nullopt;
  const std::span<const std::byte> from = request.gpu_payload->bytes;
  const std::shared_ptr<std::byte> to = NewBytes(from.size());
  SKETCHKV_RETURN_IF_ERROR(NoteGpu(card()->CopyToHost(from, to.get())));
  copied.payload.Append({to.get(), from.size()}, to);
  return copied;
}

std::vector<absl::StatusOr<Engine::PutResult>> Engine::PutFromGpu(
    uint32_t tenant, std::span<const PutRequest* const> requests) {
  std::vector<absl::StatusOr<PutResult>> results(requests.size(), PutResult());
  std::vector<absl::StatusOr<PendingPut>> begun;
  std::vector<PendingPut*> puts;
  std::vector<size_t> request_of;  // [puts]
  begun.reserve(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    if (!CodesOnGpu(requests[i]->model)) {
      const absl::StatusOr<PutRequest> copied = CopyPayloadToHost(*requests[i]);
      results[i] = copied.ok() ? Put(tenant, *copied) : copied.status();
      continue;
    }
    begun.push_back(BeginPut(tenant, *requests[i], /*want_gpu=*/true));
    if (!begun.back().ok()) {
      results[i] = begun.back().status();
      continue;
    }
    puts.push_back(&*begun.back());
    request_of.push_back(i);
  }
  std::vector<absl::Status> refused(puts.size());
  const absl::Status failed = EncodeOnGpu(puts, refused);
  for (size_t i = 0; i < puts.size(); ++i) {
    absl::Status status = failed.ok() ? refused[i] : failed;
    const auto& still_valid = puts[i]->request->still_valid;
    if (status.ok() && still_valid) status = still_valid();
    if (!status.ok()) {
      results[request_of[i]] = status;
      continue;
    }
    const bool stale = !puts[i]->handle.gpu_slot().empty();
    results[request_of[i]] = EndPut(puts[i], stale ? HostBytes::kStale : HostBytes::kWritten);
  }
  return results;
}

absl::Status Engine::EncodeOnGpu(std::span<PendingPut* const> puts,
                                 std::span<absl::Status> refused) {
  std::vector<GpuEncoding> parts;
  std::vector<size_t> put_of;  // [parts]
  std::vector<std::vector<uint64_t>> seeds;
  for (size_t i = 0; i < puts.size(); ++i) {
    PendingPut* const put = puts[i];
    if (put->checksums.empty()) continue;  // all is there already
    put_of.push_back(i);
    seeds.push_back(put->Seeds());
    parts.push_back(
        {.part = put->Part(seeds.back()), .payload = put->request->gpu_payload->bytes.data()});
  }
  if (parts.empty()) return absl::OkStatus();
  SKETCHKV_RETURN_IF_ERROR(NoteGpu(card()->Encode(parts)));
  for (size_t i = 0; i < parts.size(); ++i) refused[put_of[i]] = parts[i].refused;
  return absl::OkStatus();
}

absl::StatusOr<bool> Engine::EncodeHostRowsOnGpu(PendingPut* put) {
  const PutRequest& request = *put->request;
  if (request.encoded || put->checksums.empty() || put->handle.gpu_slot().empty()) return false;
  const std::vector<uint64_t> seeds = put->Seeds();
  std::optional<SteppedChecksum> checksum;
  if (!request.still_valid) checksum.emplace(request.payload);
  absl::Status refused;
  const absl::StatusOr<bool> encoded = card()->EncodeFromHost(
      put->Part(seeds), request.payload,
      [&](uint64_t end) {
        if (checksum) checksum->AddUpTo(end);
      },
      &refused);
  if (!encoded.ok()) {
    (void)NoteGpu(encoded.status());
    return false;  // the host is still there
  }
  // Of two errors it is the one that is told: bytes that are not what was sent have others.
  if (*encoded && checksum) {
    SKETCHKV_RETURN_IF_ERROR(CheckPayload(request.part.checksum, checksum->Finish()));
  }
  // The host says what is wrong as it always does.
  if (!*encoded || !refused.ok()) return false;
  if (request.still_valid) SKETCHKV_RETURN_IF_ERROR(request.still_valid());
  return true;
}

absl::StatusOr<uint64_t> Engine::GetToGpu(const BlockKey& key, const GetRequest& request,
                                          const CellRange& range, PartSink* sink) {
  SKETCHKV_RETURN_IF_ERROR(CheckGpu());
  if (!request.dtype.has_value()) {
    return absl::InvalidArgumentError("gpu_memory takes decoded payloads; there is no format");
  }
  // Before the block is pinned: see Serves.
  if (!CodesOnGpu(request.model)) return GetToGpuOverHost(key, request, range, sink);
  SKETCHKV_ASSIGN_OR_RETURN(const ReadPins pins, pool_->Pin(key));
  const BlockView block = pins[0];
  const RawAnswer answer{*request.model, range, block.num_tokens, *request.dtype,
                         request.raw_order};
  const RawPartFormat format = answer.Format(range);
  SKETCHKV_RETURN_IF_ERROR(CheckRoom(request, format.total_bytes()));
  const std::vector<WriteHandle::Cell> cells = CellsOf(range);
  const std::vector<uint64_t> seeds = SeedsOf(CellChecksummer(key, block.num_tokens), cells);
  std::vector<uint32_t> checksums(cells.size());
  const GpuPart part{.model = request.model,
                     .layout = answer.Layout(),
                     .cells = cells,
                     .slot = block.gpu,
                     .host_slot = const_cast<std::byte*>(block.bytes.data()),  // only read
                     .seeds = seeds,
                     .checksums = checksums};
  SKETCHKV_RETURN_IF_ERROR(request.patience.Check());
  SKETCHKV_RETURN_IF_ERROR(NoteGpu(card()->Decode(part, *request.dtype, request.into.data())));
  for (size_t i = 0; i < cells.size(); ++i) {
    const absl::Status checked = CheckCell(*request.model, block, cells[i], checksums[i]);
    if (checked.ok()) continue;
    pool_->Discard(key);
    return checked;
  }
  sink->Begin(answer.Layout(), format, 0);
  return 0;
}

absl::StatusOr<uint64_t> Engine::GetToGpuOverHost(const BlockKey& key, const GetRequest& request,
                                                  const CellRange& range, PartSink* sink) {
  SKETCHKV_ASSIGN_OR_RETURN(const ReadPins pins, PinForHost(key));
  GetRequest on_host = request;
  const RawAnswer answer{*request.model, range, pins[0].num_tokens, *request.dtype,
                         request.raw_order};
  const uint64_t bytes = answer.Format(range).total_bytes();
  SKETCHKV_RETURN_IF_ERROR(CheckRoom(request, bytes));
  const std::shared_ptr<std::byte> decoded = NewBytes(bytes);
  on_host.into_place = Place::kHost;
  on_host.into = {decoded.get(), bytes};
  SKETCHKV_ASSIGN_OR_RETURN(const uint64_t checksum, GetDecoded(on_host, range, pins, sink));
  SKETCHKV_RETURN_IF_ERROR(request.patience.Check());
  SKETCHKV_RETURN_IF_ERROR(NoteGpu(card()->CopyToGpu(on_host.into, request.into.data())));
  return checksum;
}

absl::Status Engine::AttendOnGpu(uint32_t tenant, const AttentionRequest& request,
                                 std::span<float> answer) {
  SKETCHKV_RETURN_IF_ERROR(CheckGpu());
  if (request.queries_place == Place::kGpu && request.answer_place == Place::kGpu) {
    SKETCHKV_ASSIGN_OR_RETURN(const AttentionTargets targets, ResolveAll(tenant, request));
    if (AllOnGpu(targets)) {
      SKETCHKV_RETURN_IF_ERROR(request.patience.Check());
      const std::vector<ItemShape> shapes = ShapeItems(request);
      return NoteGpu(GpuPartials(request, targets, shapes).Compute(card(), answer, Place::kGpu));
    }
  }
  AttentionRequest on_host = request;
  std::vector<float> host_queries, host_answer;
  SKETCHKV_RETURN_IF_ERROR(QueriesToHost(&on_host, &host_queries));
  if (request.answer_place == Place::kHost) return Attend(tenant, on_host, answer);
  on_host.answer_place = Place::kHost;
  host_answer.resize(answer.size());
  SKETCHKV_RETURN_IF_ERROR(Attend(tenant, on_host, host_answer));
  SKETCHKV_RETURN_IF_ERROR(request.patience.Check());
  return NoteGpu(card()->CopyToGpu(std::as_bytes(std::span(host_answer)),
                                   reinterpret_cast<std::byte*>(answer.data())));
}

absl::Status Engine::QueriesToHost(AttentionRequest* request, std::vector<float>* queries) {
  if (request->queries_place == Place::kHost) return absl::OkStatus();
  SKETCHKV_RETURN_IF_ERROR(CheckGpu());
  queries->resize(request->queries.size());
  SKETCHKV_RETURN_IF_ERROR(NoteGpu(card()->CopyToHost(
      std::as_bytes(request->queries), reinterpret_cast<std::byte*>(queries->data()))));
  request->queries = *queries;
  request->queries_place = Place::kHost;
  return absl::OkStatus();
}

}  // namespace sketchkv
