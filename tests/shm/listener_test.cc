#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>

#include "proto/segment_socket.h"
#include "service/shm/segment_listener.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::string SocketPath() {
  return ::testing::TempDir() + "/sketchkv_" + std::to_string(getpid()) + ".sock";
}

int Connect(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

// What the server answers; false at the end of the connection.
bool Ask(int fd, uint64_t bytes, SegmentGrant* grant) {
  SegmentAsk ask;
  ask.bytes = bytes;
  return send(fd, &ask, sizeof(ask), MSG_NOSIGNAL) == sizeof(ask) &&
         recv(fd, grant, sizeof(*grant), 0) == sizeof(*grant);
}

// The segment's, of a request that is granted.
int AskForDescriptor(int socket_fd, uint64_t bytes) {
  SegmentAsk ask;
  ask.bytes = bytes;
  EXPECT_EQ(send(socket_fd, &ask, sizeof(ask), MSG_NOSIGNAL), sizeof(ask));
  SegmentGrant grant;
  iovec part = {&grant, sizeof(grant)};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  EXPECT_EQ(recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC), sizeof(grant));
  EXPECT_EQ(grant.code, 0);
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
  return fd;
}

void WaitForUse(const SegmentTable& table, uint64_t bytes) {
  for (int i = 0; i < 2000 && table.used_bytes() != bytes; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(table.used_bytes(), bytes);
}

TEST(SegmentListenerTest, AConnectionHasASegmentAndItsEndFreesIt) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = 2 * kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto listener, SegmentListener::Start(SocketPath(), &table));
  const int a = Connect(listener->path()), b = Connect(listener->path());
  SegmentGrant grant_a, grant_b;
  ASSERT_TRUE(Ask(a, kMiB, &grant_a));
  ASSERT_TRUE(Ask(b, 4 * kMiB, &grant_b));
  EXPECT_EQ(grant_a.code, 0);
  EXPECT_EQ(grant_b.bytes, kMiB);
  EXPECT_NE(std::memcmp(grant_a.token, grant_b.token, 16), 0);
  EXPECT_EQ(std::memcmp(grant_a.server, listener->server().data(), 16), 0);
  EXPECT_EQ(table.used_bytes(), 2 * kMiB);

  const int c = Connect(listener->path());
  SegmentGrant grant_c;
  ASSERT_TRUE(Ask(c, kMiB, &grant_c));
  EXPECT_EQ(grant_c.code, static_cast<uint32_t>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(grant_c.message, ::testing::HasSubstr(std::to_string(2 * kMiB)));
  close(a);
  WaitForUse(table, kMiB);
  ASSERT_TRUE(Ask(c, kMiB, &grant_c)) << "it may ask again";
  EXPECT_EQ(grant_c.code, 0);
  EXPECT_FALSE(Ask(c, kMiB, &grant_c)) << "but has one only";
  WaitForUse(table, kMiB);
  close(b);
  close(c);
  WaitForUse(table, 0);
}

// A client that ends its connection and keeps the descriptor must not keep the memory, which is the
// server's; one whose server ends keeps its bytes, since it may still read them.
TEST(SegmentListenerTest, MemoryGoesWithTheClientThatLeavesWhateverDescriptorIsKept) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = 2 * kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(auto listener, SegmentListener::Start(SocketPath(), &table));
  const auto blocks = [](int fd) {
    struct stat info = {};
    EXPECT_EQ(fstat(fd, &info), 0);
    return info.st_blocks;
  };
  const int leaver = Connect(listener->path()), stayer = Connect(listener->path());
  const int kept = AskForDescriptor(leaver, kMiB), used = AskForDescriptor(stayer, kMiB);
  EXPECT_GT(blocks(kept), 0);
  close(leaver);
  WaitForUse(table, kMiB);
  EXPECT_EQ(blocks(kept), 0);
  listener = nullptr;
  EXPECT_EQ(table.used_bytes(), 0);
  EXPECT_GT(blocks(used), 0);
  for (const int fd : {kept, used, stayer}) close(fd);
}

TEST(SegmentListenerTest, AConnectionThatDoesNotAskIsEnded) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto listener, SegmentListener::Start(SocketPath(), &table));
  const int silent = Connect(listener->path());
  pollfd polled = {silent, POLLIN, 0};
  ASSERT_EQ(poll(&polled, 1, 20'000), 1);
  char byte = 0;
  EXPECT_EQ(recv(silent, &byte, 1, 0), 0);
  close(silent);
}

TEST(SegmentListenerTest, AFileThatIsNoSocketIsLeftAlone) {
  const std::string path = SocketPath() + ".txt";
  std::ofstream(path) << "precious";
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  EXPECT_THAT(SegmentListener::Start(path, &table),
              StatusIs(absl::StatusCode::kInvalidArgument, {path, "no socket"}));
  std::string text;
  std::ifstream(path) >> text;
  EXPECT_EQ(text, "precious");
  std::remove(path.c_str());
}

TEST(SegmentListenerTest, WhatIsNoRequestEndsTheConnection) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto listener, SegmentListener::Start(SocketPath(), &table));
  for (const std::string& text :
       {std::string("hello"), std::string(16, 'x'), std::string(500, 0)}) {
    const int fd = Connect(listener->path());
    ASSERT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    char byte;
    EXPECT_EQ(recv(fd, &byte, 1, 0), 0);
    close(fd);
  }
  EXPECT_EQ(table.used_bytes(), 0);
}

TEST(SegmentListenerTest, ASocketLeftBehindIsReplacedOneInUseIsNot) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  const std::string path = SocketPath();
  {
    const int dead = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    ASSERT_EQ(bind(dead, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    close(dead);
  }
  SKETCHKV_ASSERT_OK_AND_ASSIGN(auto listener, SegmentListener::Start(path, &table));
  EXPECT_THAT(SegmentListener::Start(path, &table),
              StatusIs(absl::StatusCode::kUnavailable, {"another server", path}));
  EXPECT_THAT(SegmentListener::Start(std::string(200, 'x'), &table),
              StatusIs(absl::StatusCode::kInvalidArgument, {"200", "107"}));
  listener = nullptr;
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "it is removed at the end";
}

TEST(SegmentListenerTest, TheEndOfTheListenerEndsItsConnections) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(auto listener, SegmentListener::Start(SocketPath(), &table));
  const int fd = Connect(listener->path());
  SegmentGrant grant;
  ASSERT_TRUE(Ask(fd, kMiB, &grant));
  listener = nullptr;
  EXPECT_EQ(table.used_bytes(), 0);
  char byte;
  EXPECT_EQ(recv(fd, &byte, 1, 0), 0);
  close(fd);
}

}  // namespace
}  // namespace sketchkv
