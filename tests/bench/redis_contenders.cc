#include "tests/bench/redis_contenders.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace sketchkv::bench {
namespace {

absl::Status Broken(const std::string& what) {
  return absl::InternalError(absl::StrCat("redis: ", what, ": ", std::strerror(errno)));
}

// A connection that speaks as much RESP as is needed. Not thread-safe.
class Redis {
 public:
  Redis() : buffer_(size_t{1} << 16) {}
  ~Redis() {
    if (fd_ >= 0) close(fd_);
  }

  absl::Status Connect(const std::string& server) {
    int port = 0;
    if (absl::SimpleAtoi(server, &port)) {
      sockaddr_in address = {};
      address.sin_family = AF_INET;
      address.sin_port = htons(static_cast<uint16_t>(port));
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      fd_ = socket(AF_INET, SOCK_STREAM, 0);
      const int one = 1;
      setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
      return ConnectTo(reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    }
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    server.copy(address.sun_path, sizeof(address.sun_path) - 1);
    fd_ = socket(AF_UNIX, SOCK_STREAM, 0);
    return ConnectTo(reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  }

  absl::Status Send(const void* bytes, size_t count) {
    for (size_t sent = 0; sent < count;) {
      const ssize_t n = send(fd_, static_cast<const char*>(bytes) + sent, count - sent, 0);
      if (n <= 0) return Broken("send");
      sent += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }
  absl::Status Send(const std::string& text) { return Send(text.data(), text.size()); }

  // A line of an answer without its end. INTERNAL for an error of the server.
  absl::StatusOr<std::string> Line() {
    std::string line;
    for (;;) {
      if (begin_ == end_) SKETCHKV_RETURN_IF_ERROR(Fill());
      const char c = buffer_[begin_++];
      if (c == '\n') break;
      line.push_back(c);
    }
    if (line.empty() || line[0] == '-') return absl::InternalError(absl::StrCat("redis: ", line));
    line.pop_back();
    return line;
  }

  absl::Status Receive(std::byte* out, size_t count) {
    const size_t there = std::min(count, end_ - begin_);
    std::memcpy(out, buffer_.data() + begin_, there);
    begin_ += there;
    for (size_t got = there; got < count;) {
      const ssize_t n = recv(fd_, out + got, count - got, 0);
      if (n <= 0) return Broken("recv");
      got += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status ConnectTo(const sockaddr* address, socklen_t size) {
    return connect(fd_, address, size) == 0 ? absl::OkStatus() : Broken("connect");
  }
  absl::Status Fill() {
    const ssize_t n = recv(fd_, buffer_.data(), buffer_.size(), 0);
    if (n <= 0) return Broken("recv");
    begin_ = 0;
    end_ = static_cast<size_t>(n);
    return absl::OkStatus();
  }

  int fd_ = -1;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;
};

std::string Key(uint64_t item) { return absl::StrCat("block", 100000 + item); }

class Store : public Contender {
 public:
  explicit Store(const Options& options)
      : items_(options.Number("items", 1)), value_(options.Number("bytes", 1)) {
    std::mt19937_64 random(1);
    for (std::byte& byte : value_) byte = static_cast<std::byte>(random());
  }
  absl::Status Open(const Options& options) {
    SKETCHKV_RETURN_IF_ERROR(redis_.Connect(options.Text("server", "")));
    return Set();
  }

 protected:
  absl::Status Clear() {
    SKETCHKV_RETURN_IF_ERROR(redis_.Send("*1\r\n$8\r\nFLUSHALL\r\n"));
    return redis_.Line().status();
  }
  absl::Status Set() {
    for (uint64_t item = 0; item < items_; ++item) {
      SKETCHKV_RETURN_IF_ERROR(
          redis_.Send(absl::StrCat("*3\r\n$3\r\nSET\r\n$", Key(item).size(), "\r\n", Key(item),
                                   "\r\n$", value_.size(), "\r\n")));
      SKETCHKV_RETURN_IF_ERROR(redis_.Send(value_.data(), value_.size()));
      SKETCHKV_RETURN_IF_ERROR(redis_.Send("\r\n"));
    }
    for (uint64_t item = 0; item < items_; ++item) {
      SKETCHKV_RETURN_IF_ERROR(redis_.Line().status());
    }
    return absl::OkStatus();
  }
  absl::Status Get() {
    std::string commands;
    for (uint64_t item = 0; item < items_; ++item) {
      absl::StrAppend(&commands, "*2\r\n$3\r\nGET\r\n$", Key(item).size(), "\r\n", Key(item),
                      "\r\n");
    }
    SKETCHKV_RETURN_IF_ERROR(redis_.Send(commands));
    for (uint64_t item = 0; item < items_; ++item) {
      SKETCHKV_ASSIGN_OR_RETURN(const std::string line, redis_.Line());
      if (line != absl::StrCat("$", value_.size())) {
        return absl::InternalError(absl::StrCat("redis: ", line, ", want ", value_.size()));
      }
      std::byte end[2];
      SKETCHKV_RETURN_IF_ERROR(redis_.Receive(value_.data(), value_.size()));
      SKETCHKV_RETURN_IF_ERROR(redis_.Receive(end, sizeof(end)));
    }
    return absl::OkStatus();
  }
  [[nodiscard]] double units() const { return static_cast<double>(items_ * value_.size()); }

 private:
  const uint64_t items_;
  std::vector<std::byte> value_;
  Redis redis_;
};

class RedisSet final : public Store {
 public:
  using Store::Store;
  absl::StatusOr<Repetition> Run() override {
    SKETCHKV_RETURN_IF_ERROR(Clear());
    const double begin = Now();
    SKETCHKV_RETURN_IF_ERROR(Set());
    return Repetition{Now() - begin, units()};
  }
};

class RedisGet final : public Store {
 public:
  using Store::Store;
  absl::StatusOr<Repetition> Run() override {
    const double begin = Now();
    SKETCHKV_RETURN_IF_ERROR(Get());
    return Repetition{Now() - begin, units()};
  }
};

template <typename T>
Made Make(const Options& options) {
  if (options.Text("server", "").empty()) {
    return absl::UnavailableError("redis-server is not installed");
  }
  auto contender = std::make_unique<T>(options);
  SKETCHKV_RETURN_IF_ERROR(contender->Open(options));
  return contender;
}

}  // namespace

void AddRedisContenders(Registry* registry) {
  registry->Add("redis.set", Make<RedisSet>);
  registry->Add("redis.get", Make<RedisGet>);
}

}  // namespace sketchkv::bench
