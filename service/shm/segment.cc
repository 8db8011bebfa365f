#include "service/shm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace sketchkv {
namespace {

absl::Status SystemError(absl::string_view what, uint64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " a segment of ", bytes, " bytes: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<SegmentToken> NewSegmentToken() {
  SegmentToken token;
  if (getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return absl::InternalError(absl::StrCat("getrandom: ", std::strerror(errno)));
  }
  return token;
}

absl::StatusOr<std::shared_ptr<Segment>> Segment::Create(uint64_t bytes) {
  const int fd = memfd_create("sketchkv", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return SystemError("cannot make", bytes);
  absl::Cleanup close_fd = [fd] { close(fd); };
  // Allocated here and now: charged to the server, and no access can fail for want of memory later.
  if (fallocate(fd, 0, 0, static_cast<off_t>(bytes)) != 0)
    return SystemError("no memory for", bytes);
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SystemError("cannot seal", bytes);
  }
  void* const base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (base == MAP_FAILED) return SystemError("cannot map", bytes);
  std::move(close_fd).Cancel();
  return std::shared_ptr<Segment>(new Segment(fd, {static_cast<std::byte*>(base), bytes}));
}

Segment::~Segment() {
  if (discard_) (void)madvise(bytes_.data(), bytes_.size(), MADV_REMOVE);
  munmap(bytes_.data(), bytes_.size());
  close(fd_);
}

absl::StatusOr<std::span<std::byte>> Segment::View(uint64_t offset, uint64_t length) const {
  if (offset > bytes_.size() || length > bytes_.size() - offset) {
    return absl::InvalidArgumentError(absl::StrCat("segment.offset ", offset, " and length ",
                                                   length, " end outside the segment of ",
                                                   bytes_.size(), " bytes"));
  }
  return bytes_.subspan(offset, length);
}

absl::StatusOr<uint64_t> Segment::Load(uint64_t offset) const {
  if (offset % sizeof(uint64_t) != 0 || bytes_.size() < sizeof(uint64_t) ||
      offset > bytes_.size() - sizeof(uint64_t)) {
    return absl::InvalidArgumentError(absl::StrCat("segment.guard_offset is ", offset,
                                                   "; it needs a multiple of 8 inside the ",
                                                   bytes_.size(), " bytes of the segment"));
  }
  // Whatever was read of the segment before was read before this.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  auto* const number = reinterpret_cast<uint64_t*>(bytes_.data() + offset);
  return std::atomic_ref<uint64_t>(*number).load();
}

}  // namespace sketchkv
