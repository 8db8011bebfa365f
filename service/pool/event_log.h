#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/base/mutex.h"
#include "service/pool/block.h"

namespace sketchkv {

enum class BlockEventType : uint8_t { kStored = 1, kSealed = 2, kEvicted = 3, kDeleted = 4 };

// kStored: the first cell of a new block was committed. kSealed: the block can be found from now on
// (all its cells are there, and its ancestors are sealed). kEvicted: dropped by the pool (pressure
// or expiry). kDeleted: dropped by request.
struct BlockEvent {
  uint64_t sequence = 0;  // 1, 2, 3, ... without holes
  BlockEventType type = BlockEventType::kStored;
  BlockKey key;
  std::optional<BlockHash> parent;
};

// The last `capacity` events. A reader that fell behind learns so. Thread-safe.
class EventLog {
 public:
  explicit EventLog(size_t capacity);

  void Append(BlockEventType type, const BlockKey& key, const std::optional<BlockHash>& parent);

  struct Batch {
    std::vector<BlockEvent> events;
    uint64_t first_missing = 0;  // > 0: events [first_missing, events.front()) were overwritten
    uint64_t next = 1;           // pass as `from` to continue
  };
  // Up to `limit` events from sequence `from` on (1 = the first ever).
  [[nodiscard]] Batch Read(uint64_t from, size_t limit) const;
  [[nodiscard]] uint64_t next_sequence() const;

  // `wake` is called after every Append, on the appender's thread, with no lock of the log held but
  // possibly under the pool's: it must not block nor call into the pool. Returns an id for
  // Unsubscribe, after which `wake` is not running and is not called again.
  uint64_t Subscribe(std::function<void()> wake);
  void Unsubscribe(uint64_t id);

 private:
  struct Subscriber {
    uint64_t id = 0;
    std::function<void()> wake;
    int running = 0;  // guarded by mu_: calls of wake() that have not returned
  };

  const size_t capacity_;
  mutable Mutex mu_;
  CondVar woken_;
  std::deque<BlockEvent> ring_ SKETCHKV_GUARDED_BY(mu_);  // ends at next_sequence_ - 1
  uint64_t next_sequence_ SKETCHKV_GUARDED_BY(mu_) = 1;
  std::vector<std::shared_ptr<Subscriber>> subscribers_ SKETCHKV_GUARDED_BY(mu_);
  uint64_t next_subscriber_ SKETCHKV_GUARDED_BY(mu_) = 1;
};

}  // namespace sketchkv
