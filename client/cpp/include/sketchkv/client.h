#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "sketchkv/attention.h"
#include "sketchkv/types.h"

namespace sketchkv {
inline namespace sdk {

struct ClientOptions {
  std::string target = "127.0.0.1:7415";  // a gRPC target: host:port, dns:///..., unix:...
  // Of every call that names none, retries included. A call never outlives its deadline.
  std::chrono::milliseconds timeout{10000};
  // Retries of calls that are safe to repeat (all but Watch, UnregisterModel and a Lookup that asks
  // for a lease), on UNAVAILABLE, ABORTED and RESOURCE_EXHAUSTED with a hint, with doubling pauses
  // from retry_pause. PutAll and GetAll go on as long as each try gets a part through.
  uint32_t max_retries = 4;
  std::chrono::milliseconds retry_pause{20};
  // Encode in this process: only compressed bytes travel. Costs this machine's cores.
  bool encode_locally = false;
  // Of the memory to share with a server on this machine, over which payloads go then; 0: none. It
  // counts against the server's bounds, which may grant less.
  uint64_t shared_memory_bytes = uint64_t{64} << 20;
  // Where the server's socket for it is here, if not where the server says (another container).
  std::string shm_socket;
};

// The hash of a block: 32 bytes that name it and its whole prefix. `payload` is whatever tells the
// block apart (its token ids); `salt` keeps weights, adapters and tenants apart and is given with
// the root. Length-prefixed SHA-256: parent_hash, salt, payload.
[[nodiscard]] BlockId ChainHash(const BlockId& parent_hash, std::span<const std::byte> payload,
                                const std::string& salt = "");

// A connection to a sketchkvd. Thread-safe. Errors are absl::Status with the server's code and
// message; DEADLINE_EXCEEDED and UNAVAILABLE mean go on without the cache.
class Client {
 public:
  // Does not wait for the connection. INVALID_ARGUMENT for a bad option.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<Client>> Create(ClientOptions options);
  // Cancels and waits for asynchronous calls under way; ends a Watch under way with CANCELLED.
  ~Client();

  // Waits until the server answers SERVING (grpc.health.v1). DEADLINE_EXCEEDED when it does not.
  [[nodiscard]] absl::Status WaitUntilServing(std::chrono::milliseconds timeout);

  // Models. Empty `profiles`: for all layers `klt` with tables that have bases, else `qjl3p`.
  // `tables_digest`: of tables that were uploaded, for profiles that use them;
  // FAILED_PRECONDITION when the server has none such.
  [[nodiscard]] absl::StatusOr<ModelInfo> RegisterModel(const std::string& name,
                                                        const CacheLayout& layout,
                                                        const std::vector<ProfileSpec>& profiles,
                                                        const std::string& tables_digest = "");
  [[nodiscard]] absl::StatusOr<ModelInfo> GetModel(const std::string& name);
  [[nodiscard]] absl::StatusOr<std::vector<ModelInfo>> ListModels();
  [[nodiscard]] absl::StatusOr<uint64_t> UnregisterModel(const std::string& name);
  // Uploads the tables of one layout, each (layer, head) of it exactly once, in any order; returns
  // their digest for RegisterModel. The server keeps what no model uses for a while only.
  // INVALID_ARGUMENT names layer, head, field and both numbers.
  [[nodiscard]] absl::StatusOr<std::string> UploadTables(const CacheLayout& layout,
                                                         std::span<const HeadTableSpec> tables);
  // In the order [layer][head]. FAILED_PRECONDITION when no profile of the model uses tables.
  [[nodiscard]] absl::StatusOr<std::vector<HeadTableSpec>> GetTables(const std::string& model);

  // Store. A vector goes over one stream; results are in the order of the parts, each its own
  // status.
  [[nodiscard]] absl::StatusOr<PutResult> Put(const PutPart& part);
  [[nodiscard]] std::vector<absl::StatusOr<PutResult>> PutAll(std::span<const PutPart> parts);
  [[nodiscard]] absl::StatusOr<LookupResult> Lookup(const std::string& model,
                                                    std::span<const BlockId> chain,
                                                    std::chrono::milliseconds lease_ttl = {});
  [[nodiscard]] absl::StatusOr<GetResult> Get(const GetPart& part);
  [[nodiscard]] std::vector<absl::StatusOr<GetResult>> GetAll(std::span<const GetPart> parts);
  [[nodiscard]] absl::StatusOr<uint64_t> Delete(const std::string& model,
                                                std::span<const BlockId> blocks);
  [[nodiscard]] absl::StatusOr<uint64_t> Clear(const std::string& model);
  [[nodiscard]] absl::StatusOr<std::chrono::milliseconds> RenewLease(uint64_t lease_id,
                                                                     std::chrono::milliseconds ttl);
  [[nodiscard]] absl::Status ReleaseLease(uint64_t lease_id);
  [[nodiscard]] absl::StatusOr<ServerStats> GetStats();

  // The way payloads of Put and Get go now; finds it out where no call has yet. A part for which
  // there is no room in the shared memory goes over gRPC all the same. (Outputs of Attend say
  // themselves how they came.)
  [[nodiscard]] Transport transport();
  // A buffer that the server can read: a part whose payload lies in it is put without a copy, and
  // queries that lie in it are attended so. Its bytes must not change until the call is done.
  // UNAVAILABLE when transport() is kGrpc;
  // RESOURCE_EXHAUSTED when there is no room.
  [[nodiscard]] absl::StatusOr<SharedBuffer> AllocateShared(size_t bytes);

  // Transform. Payloads as PutPart::payload; nothing is stored.
  [[nodiscard]] absl::StatusOr<std::vector<std::byte>> Encode(const PutPart& part);
  [[nodiscard]] absl::StatusOr<std::vector<std::byte>> Decode(const std::string& model,
                                                              const PartRange& range,
                                                              uint32_t num_tokens,
                                                              std::span<const std::byte> cells,
                                                              ElementType type, RawOrder order);

  // Query. One output an item of the call.
  [[nodiscard]] absl::StatusOr<std::vector<AttentionOutput>> Attend(const AttentionCall& call);
  [[nodiscard]] absl::StatusOr<std::vector<ScoreOutput>> Score(const AttentionCall& call);

  // Asynchronous forms. `done` is called once, on a thread of the client: it must not block, nor
  // destroy the client. What a part or call points to must live until then. At most 16 are on their
  // way at a time; the others wait their turn, and that time counts.
  void PutAsync(const PutPart& part, std::function<void(absl::StatusOr<PutResult>)> done);
  void GetAsync(const GetPart& part, std::function<void(absl::StatusOr<GetResult>)> done);
  void AttendAsync(const AttentionCall& call,
                   std::function<void(absl::StatusOr<std::vector<AttentionOutput>>)> done);

  // A long-lived stream of Attend calls for a decode loop. Thread-safe; several calls may be under
  // way. After an error of the stream itself the next call opens a new one.
  class AttendSession {
   public:
    virtual ~AttendSession() = default;
    [[nodiscard]] virtual absl::StatusOr<std::vector<AttentionOutput>> Attend(
        const AttentionCall& call) = 0;
  };
  [[nodiscard]] std::unique_ptr<AttendSession> NewAttendSession();

  // Calls `on_event` for each event from `from_sequence` on (0: from now on) until it returns false
  // (OK) or the stream ends (its status). Blocks; has no deadline. CANCELLED when the client is
  // destroyed meanwhile.
  [[nodiscard]] absl::Status Watch(const std::string& model, uint64_t from_sequence,
                                   const std::function<bool(const CacheEvent&)>& on_event);

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sdk
}  // namespace sketchkv
