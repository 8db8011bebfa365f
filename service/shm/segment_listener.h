#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "service/shm/segment_table.h"

namespace sketchkv {

// Hands segments out over a Unix socket, one a connection, and takes them back when the connection
// ends: a client that dies frees its own. One thread, which waits for sockets and nothing else.
class SegmentListener {
 public:
  // Listens at `path`, in place of what a server that died left there. UNAVAILABLE when it cannot,
  // or another server listens there. `table` outlives the listener.
  [[nodiscard]] static absl::StatusOr<std::unique_ptr<SegmentListener>> Start(
      const std::string& path, SegmentTable* table);
  // Ends all connections and their segments.
  ~SegmentListener();
  SegmentListener(const SegmentListener&) = delete;
  SegmentListener& operator=(const SegmentListener&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }
  // Random; tells a client that the socket is of the server it calls.
  [[nodiscard]] const SegmentToken& server() const { return server_; }

 private:
  // What a connection was granted; none yet: it has not asked.
  struct Client {
    bool granted = false;
    SegmentToken token{};
    std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
  };

  SegmentListener(std::string path, SegmentTable* table, int listen_fd, int stop_fd,
                  const SegmentToken& server);
  void Work();
  void Accept();
  // Ends connections that have not asked in time: they would keep others out.
  void EndSilent();
  void End(int fd, bool client_is_gone);
  // False when the connection has ended or is to end.
  bool Serve(int fd, Client* client);

  const std::string path_;
  SegmentTable* const table_;
  const int listen_fd_;
  const int stop_fd_;
  const SegmentToken server_;
  std::map<int, Client> clients_;  // the thread's own
  std::thread thread_;
};

}  // namespace sketchkv
