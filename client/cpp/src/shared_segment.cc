#include "client/cpp/src/shared_segment.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "proto/segment_socket.h"

namespace sketchkv::client {
namespace {

constexpr uint64_t kGuardBytes = RegionAllocator::kAlignment;
// The server's thread makes the segment's pages before it answers.
constexpr std::chrono::milliseconds kAnswerTime{5'000};
// How long a payload waits for room that others are about to free before it travels: what is in
// their way may be a buffer that its owner keeps.
constexpr std::chrono::milliseconds kPatience{100};

absl::Status SystemError(absl::string_view what, const std::string& path) {
  return absl::UnavailableError(absl::StrCat(what, " ", path, ": ", std::strerror(errno)));
}

// What is left for an answer.
std::chrono::milliseconds TimeLeft(TimePoint deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::steady_clock::now());
  return std::clamp(left, std::chrono::milliseconds(0), kAnswerTime);
}

// A listener that takes no connections blocks for so long.
void LimitConnect(int socket_fd, std::chrono::milliseconds time) {
  const timeval limit = {.tv_sec = time.count() / 1000,
                         .tv_usec = std::max<int64_t>(1, time.count() % 1000 * 1000)};
  (void)setsockopt(socket_fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

// The server's answer and the descriptor that came with it (-1: none).
bool Receive(int socket_fd, TimePoint deadline, SegmentGrant* grant, int* fd) {
  *fd = -1;
  pollfd polled = {socket_fd, POLLIN, 0};
  if (poll(&polled, 1, static_cast<int>(TimeLeft(deadline).count())) != 1) return false;
  iovec part = {grant, sizeof(*grant)};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t received = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
  const cmsghdr* const header = received < 0 ? nullptr : CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    std::memcpy(fd, CMSG_DATA(header), sizeof(*fd));
  }
  return received == sizeof(*grant) && grant->magic == kSegmentMagic;
}

}  // namespace

absl::StatusOr<std::shared_ptr<SharedSegment>> SharedSegment::Open(const std::string& path,
                                                                   uint64_t bytes,
                                                                   const std::string& server,
                                                                   TimePoint deadline) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shm_socket has ", path.size(), " bytes, want 1 to ", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const int socket_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (socket_fd < 0) return SystemError("no socket for", path);
  absl::Cleanup close_socket = [socket_fd] { close(socket_fd); };
  LimitConnect(socket_fd, TimeLeft(deadline));
  if (connect(socket_fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return SystemError("cannot connect to", path);
  }
  SegmentAsk ask;
  ask.bytes = bytes;
  if (send(socket_fd, &ask, sizeof(ask), MSG_NOSIGNAL) != sizeof(ask)) {
    return SystemError("cannot write to", path);
  }
  SegmentGrant grant;
  int fd = -1;
  const bool answered = Receive(socket_fd, deadline, &grant, &fd);
  const absl::Cleanup close_fd = [fd] {
    if (fd >= 0) close(fd);
  };
  if (!answered) return absl::UnavailableError(absl::StrCat("no answer at ", path));
  const std::string from(reinterpret_cast<const char*>(grant.server), sizeof(grant.server));
  if (from != server) {
    return absl::UnavailableError(absl::StrCat("at ", path, " listens another server"));
  }
  if (grant.code != 0) {
    grant.message[sizeof(grant.message) - 1] = 0;
    return absl::Status(static_cast<absl::StatusCode>(grant.code), grant.message);
  }
  struct stat info = {};
  if (fd < 0 || fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < grant.bytes) {
    return absl::UnavailableError(
        absl::StrCat("the segment has ", info.st_size, " bytes, want ", grant.bytes));
  }
  void* const base =
      mmap(nullptr, grant.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (base == MAP_FAILED) return SystemError("cannot map the segment of", path);
  std::move(close_socket).Cancel();
  return std::shared_ptr<SharedSegment>(new SharedSegment(
      socket_fd, {static_cast<std::byte*>(base), grant.bytes},
      std::string(reinterpret_cast<const char*>(grant.token), sizeof(grant.token))));
}

SharedSegment::SharedSegment(int socket_fd, std::span<std::byte> memory, std::string token)
    : socket_fd_(socket_fd), memory_(memory), token_(std::move(token)), regions_(memory.size()) {
  // Guards are random numbers, so that payload bytes that come to lie where one was are none.
  MutexLock lock(&mu_);
  next_guard_ = 0;
  (void)!getrandom(&next_guard_, sizeof(next_guard_), 0);
}

SharedSegment::~SharedSegment() {
  munmap(memory_.data(), memory_.size());
  close(socket_fd_);
}

bool SharedSegment::alive() const {
  // The server sends nothing more: whatever is there to read is the end.
  pollfd polled = {socket_fd_, POLLIN, 0};
  return poll(&polled, 1, 0) == 0;
}

std::unique_ptr<SharedSegment::Region> SharedSegment::TryAllocate(uint64_t bytes, bool temporary) {
  if (retired_ || bytes > memory_.size() - kGuardBytes) return nullptr;
  const std::optional<uint64_t> offset = regions_.Allocate(kGuardBytes + bytes);
  if (!offset) return nullptr;
  SetGuard(*offset);
  num_temporary_ += temporary;
  return std::make_unique<Region>(shared_from_this(), *offset, bytes, temporary);
}

std::unique_ptr<SharedSegment::Region> SharedSegment::Allocate(uint64_t bytes) {
  MutexLock lock(&mu_);
  return TryAllocate(bytes, /*temporary=*/false);
}

std::unique_ptr<SharedSegment::Region> SharedSegment::AllocateTemporary(uint64_t bytes,
                                                                        TimePoint deadline) {
  deadline = std::min(deadline, std::chrono::steady_clock::now() + kPatience);
  MutexLock lock(&mu_);
  if (bytes > memory_.size() - kGuardBytes) return nullptr;
  while (true) {
    std::unique_ptr<Region> region = TryAllocate(bytes, /*temporary=*/true);
    // Where nothing is on its way, waiting would be for the caller's own buffers.
    if (region != nullptr || num_temporary_ == 0 || retired_) return region;
    if (!freed_.WaitUntil(&mu_, deadline)) return nullptr;
  }
}

void SharedSegment::Retire() {
  MutexLock lock(&mu_);
  retired_ = true;
  freed_.NotifyAll();
}

void SharedSegment::SetGuard(uint64_t region) {
  next_guard_ += 0x9E3779B97F4A7C15u;  // no number comes twice
  auto* const guard = reinterpret_cast<uint64_t*>(memory_.data() + region);
  // Before any later write to the region's bytes.
  std::atomic_ref<uint64_t>(*guard).store(next_guard_);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void SharedSegment::Free(uint64_t region, bool temporary) {
  MutexLock lock(&mu_);
  num_temporary_ -= temporary;
  SetGuard(region);
  regions_.Free(region);
  freed_.NotifyAll();
}

std::optional<uint64_t> SharedSegment::RegionOf(std::span<const std::byte> bytes) const {
  if (bytes.empty() || bytes.data() < memory_.data() ||
      bytes.data() >= memory_.data() + memory_.size()) {
    return std::nullopt;
  }
  return regions_.Find(bytes.data() - memory_.data(), bytes.size());
}

std::optional<v1::SegmentRef> SharedSegment::Find(std::span<const std::byte> bytes) {
  MutexLock lock(&mu_);
  const std::optional<uint64_t> region = RegionOf(bytes);
  if (!region) return std::nullopt;
  v1::SegmentRef ref;
  ref.set_token(token_);
  ref.set_offset(bytes.data() - memory_.data());
  ref.set_length(bytes.size());
  ref.set_guard_offset(*region);
  auto* const guard = reinterpret_cast<uint64_t*>(memory_.data() + *region);
  ref.set_guard(std::atomic_ref<uint64_t>(*guard).load());
  return ref;
}

void SharedSegment::TakeBack(std::span<const std::byte> bytes) {
  MutexLock lock(&mu_);
  const std::optional<uint64_t> region = RegionOf(bytes);
  if (region) SetGuard(*region);
}

SharedSegment::Region::Region(std::shared_ptr<SharedSegment> segment, uint64_t offset,
                              uint64_t bytes, bool temporary)
    : segment_(std::move(segment)), offset_(offset), bytes_(bytes), temporary_(temporary) {}

SharedSegment::Region::~Region() { segment_->Free(offset_, temporary_); }

std::span<std::byte> SharedSegment::Region::bytes() const {
  return segment_->memory_.subspan(offset_ + kGuardBytes, bytes_);
}

}  // namespace sketchkv::client
