#include "service/shm/segment_listener.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "proto/segment_socket.h"

namespace sketchkv {
namespace {

// Connections at once; each may hold a descriptor and a segment.
constexpr size_t kMaxClients = 256;
// In which a connection must ask for its segment.
constexpr std::chrono::seconds kAskTime{2};

absl::Status SystemError(absl::string_view what, const std::string& path) {
  return absl::UnavailableError(absl::StrCat(what, " ", path, ": ", std::strerror(errno)));
}

// A socket left by a server that is gone is removed; one that answers is not.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat info = {};
  if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is there and no socket"));
  }
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return SystemError("no socket for", path);
  const absl::Cleanup close_fd = [fd] { close(fd); };
  const int result = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  if (result == 0 || errno == EAGAIN) {  // or its queue is full
    return absl::UnavailableError(absl::StrCat("another server listens at ", path));
  }
  if (errno == ECONNREFUSED && unlink(path.c_str()) != 0) return SystemError("cannot remove", path);
  return absl::OkStatus();
}

// With `fd` beside it unless that is -1.
bool Send(int socket_fd, const SegmentGrant& grant, int fd) {
  iovec part = {const_cast<SegmentGrant*>(&grant), sizeof(grant)};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  return sendmsg(socket_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == sizeof(grant);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SegmentListener>> SegmentListener::Start(const std::string& path,
                                                                        SegmentTable* table) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the socket's path has ", path.size(),
                                                   " bytes; it needs 1 to ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  SKETCHKV_RETURN_IF_ERROR(RemoveStale(path, address));
  SKETCHKV_ASSIGN_OR_RETURN(const SegmentToken server, NewSegmentToken());
  const int listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listen_fd < 0) return SystemError("no socket for", path);
  absl::Cleanup close_listen = [listen_fd] { close(listen_fd); };
  if (bind(listen_fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listen_fd, 64) != 0) {
    return SystemError("cannot listen at", path);
  }
  const int stop_fd = eventfd(0, EFD_CLOEXEC);
  if (stop_fd < 0) return SystemError("no event for", path);
  std::move(close_listen).Cancel();
  return std::unique_ptr<SegmentListener>(
      new SegmentListener(path, table, listen_fd, stop_fd, server));
}

SegmentListener::SegmentListener(std::string path, SegmentTable* table, int listen_fd, int stop_fd,
                                 const SegmentToken& server)
    : path_(std::move(path)),
      table_(table),
      listen_fd_(listen_fd),
      stop_fd_(stop_fd),
      server_(server),
      thread_([this] { Work(); }) {}

SegmentListener::~SegmentListener() {
  const uint64_t one = 1;
  (void)!write(stop_fd_, &one, sizeof(one));
  thread_.join();
  unlink(path_.c_str());  // while nobody else can have bound there
  close(stop_fd_);
  close(listen_fd_);
}

void SegmentListener::Work() {
  while (true) {
    std::vector<pollfd> polled = {{stop_fd_, POLLIN, 0}, {listen_fd_, POLLIN, 0}};
    for (const auto& [fd, client] : clients_) polled.push_back({fd, POLLIN, 0});
    const int second_ms = 1000;
    if (poll(polled.data(), polled.size(), second_ms) < 0) continue;  // EINTR
    if (polled[0].revents != 0) break;
    for (size_t i = 2; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      const auto it = clients_.find(polled[i].fd);
      if (!Serve(it->first, &it->second)) End(it->first, /*client_is_gone=*/true);
    }
    if (polled[1].revents != 0) Accept();
    EndSilent();
  }
  while (!clients_.empty()) End(clients_.begin()->first, /*client_is_gone=*/false);
}

void SegmentListener::End(int fd, bool client_is_gone) {
  const auto it = clients_.find(fd);
  if (it->second.granted) table_->Remove(it->second.token, client_is_gone);
  close(fd);
  clients_.erase(it);
}

void SegmentListener::EndSilent() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<int> silent;
  for (const auto& [fd, client] : clients_) {
    if (!client.granted && now - client.since > kAskTime) silent.push_back(fd);
  }
  for (const int fd : silent) End(fd, /*client_is_gone=*/true);
}

void SegmentListener::Accept() {
  const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) {
    // The connection stays in the queue: without a pause this thread would spin on it.
    if (errno != EAGAIN) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return;
  }
  if (clients_.size() < kMaxClients) {
    clients_.emplace(fd, Client());
  } else {
    close(fd);
  }
}

bool SegmentListener::Serve(int fd, Client* client) {
  SegmentAsk ask;
  const ssize_t received = recv(fd, &ask, sizeof(ask), 0);
  if (received < 0) return errno == EAGAIN || errno == EINTR;
  // The end, or what no client sends.
  if (received != sizeof(ask) || ask.magic != kSegmentMagic || client->granted) return false;
  SegmentGrant grant;
  std::copy(server_.begin(), server_.end(), grant.server);
  const absl::StatusOr<SegmentTable::Added> added = table_->Add(ask.bytes);
  if (!added.ok()) {
    grant.code = static_cast<uint32_t>(added.status().code());
    const absl::string_view why = added.status().message();
    std::memcpy(grant.message, why.data(), std::min(why.size(), sizeof(grant.message) - 1));
    return Send(fd, grant, -1);
  }
  client->granted = true;
  client->token = added->token;
  grant.bytes = added->segment->size();
  std::copy(added->token.begin(), added->token.end(), grant.token);
  return Send(fd, grant, added->segment->fd());
}

}  // namespace sketchkv
