// The SDK's shared-memory path against real server processes.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "client/cpp/src/region_allocator.h"
#include "client/cpp/src/shared_segment.h"
#include "service/shm/segment_listener.h"
#include "sketchkv/client.h"
#include "tests/testing/server_process.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

std::string SocketPath(const std::string& name = "shm") {
  return ::testing::TempDir() + "/sketchkv_" + name + std::to_string(getpid()) + ".sock";
}

std::unique_ptr<Client> Connect(const std::string& target, uint64_t shared_bytes = 8 * kMiB,
                                const std::string& socket = "") {
  auto client = Client::Create({.target = target,
                                .timeout = std::chrono::milliseconds(30000),
                                .shared_memory_bytes = shared_bytes,
                                .shm_socket = socket});
  EXPECT_THAT(client, IsOk());
  return *std::move(client);
}

TimePoint Soon() { return std::chrono::steady_clock::now() + std::chrono::seconds(30); }

// 1 MiB a block in bf16.
CacheLayout Layout() {
  return {
      .num_layers = 4, .num_kv_heads = 4, .head_dim = 128, .value_dim = 128, .block_tokens = 128};
}

std::vector<std::byte> RandomPayload(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(kMiB);
  for (size_t i = 0; i < bytes.size(); i += 2) {
    const auto number = static_cast<uint16_t>(0x3f00 + random() % 256 + (random() & 0x8000));
    std::memcpy(bytes.data() + i, &number, sizeof(number));
  }
  return bytes;
}

BlockId Hash(uint64_t n) {
  BlockId hash(16, '\0');
  std::memcpy(hash.data(), &n, sizeof(n));
  return hash;
}

PutPart PartOf(uint64_t hash, std::span<const std::byte> payload) {
  PutPart part;
  part.model = "m";
  part.block_hash = Hash(hash);
  part.num_tokens = 128;
  part.payload = payload;
  return part;
}

GetPart GetOf(uint64_t hash, std::optional<ElementType> type) {
  GetPart part;
  part.model = "m";
  part.block_hash = Hash(hash);
  part.type = type;
  return part;
}

TEST(RegionAllocatorTest, HolesAreUsedJoinedAndFound) {
  client::RegionAllocator regions(1000);  // 15 units of 64
  const auto a = regions.Allocate(1), b = regions.Allocate(64), c = regions.Allocate(65);
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(*a, 0);
  EXPECT_EQ(*b, 64);
  EXPECT_EQ(*c, 128);
  EXPECT_FALSE(regions.Allocate(960).has_value());
  EXPECT_EQ(regions.Find(130, 10), c);
  EXPECT_EQ(regions.Find(128, 128), c);
  EXPECT_FALSE(regions.Find(128, 129).has_value()) << "past its end";
  EXPECT_FALSE(regions.Find(100, 60).has_value()) << "over two regions";
  EXPECT_FALSE(regions.Find(300, 1).has_value()) << "in a hole";
  regions.Free(*b);
  EXPECT_FALSE(regions.Find(64, 1).has_value());
  EXPECT_EQ(regions.Allocate(10), b);
  regions.Free(*a);
  regions.Free(*c);
  regions.Free(*b);
  EXPECT_EQ(regions.Allocate(960), 0) << "all one hole again";
  EXPECT_FALSE(regions.Allocate(1).has_value());
}

TEST(SharedSegmentTest, TheGuardChangesWhenBytesAreTakenBackAndWhenTheyAreFreed) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto listener, SegmentListener::Start(SocketPath(), &table));
  const std::string server(listener->server().begin(), listener->server().end());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto segment, client::SharedSegment::Open(listener->path(), kMiB, server, Soon()));
  std::unique_ptr<client::SharedSegment::Region> region = segment->Allocate(1000);
  const std::span<std::byte> bytes = region->bytes().subspan(8, 100);
  const v1::SegmentRef ref = *segment->Find(bytes);
  EXPECT_EQ(ref.length(), 100);
  // As the server sees it.
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const std::shared_ptr<Segment> seen, table.Find(ref.token()));
  EXPECT_EQ(seen->Load(ref.guard_offset()).value(), ref.guard());
  std::memset(bytes.data(), 0x5a, bytes.size());
  EXPECT_EQ((*seen->View(ref.offset(), 1))[0], std::byte{0x5a});
  EXPECT_EQ(seen->Load(ref.guard_offset()).value(), ref.guard()) << "the bytes are beside it";
  segment->TakeBack(bytes);
  EXPECT_NE(seen->Load(ref.guard_offset()).value(), ref.guard());
  const v1::SegmentRef again = *segment->Find(bytes);
  EXPECT_EQ(seen->Load(again.guard_offset()).value(), again.guard());
  region = nullptr;
  EXPECT_NE(seen->Load(again.guard_offset()).value(), again.guard());
  EXPECT_FALSE(segment->Find(bytes).has_value());
  EXPECT_THAT(client::SharedSegment::Open(listener->path(), kMiB, std::string(16, 'x'), Soon()),
              StatusIs(absl::StatusCode::kUnavailable, {"another server"}));
}

// Its server may still write where an unanswered item's bytes were: they must not become another's,
// also of those who hold the segment, or wait for room in it.
TEST(SharedSegmentTest, ARetiredSegmentGivesNoMemory) {
  SegmentTable table({.client_bytes = kMiB, .total_bytes = kMiB});
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const auto listener, SegmentListener::Start(SocketPath(), &table));
  const std::string server(listener->server().begin(), listener->server().end());
  SKETCHKV_ASSERT_OK_AND_ASSIGN(
      const auto segment, client::SharedSegment::Open(listener->path(), kMiB, server, Soon()));
  const auto later = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  auto unanswered = segment->AllocateTemporary(kMiB - 64, later);
  ASSERT_NE(unanswered, nullptr);
  std::unique_ptr<client::SharedSegment::Region> waited;
  std::thread waiter([&] { waited = segment->AllocateTemporary(1000, later); });
  segment->Retire();
  unanswered = nullptr;
  waiter.join();
  EXPECT_EQ(waited, nullptr);
  EXPECT_EQ(segment->Allocate(1), nullptr);
  EXPECT_EQ(segment->AllocateTemporary(1, later), nullptr);
}

TEST(SharedSegmentTest, AListenerThatDoesNotAnswerCostsNoMoreThanTheDeadline) {
  const std::string path = SocketPath("mute");
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  ASSERT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(client::SharedSegment::Open(path, kMiB, std::string(16, 'x'),
                                          begin + std::chrono::milliseconds(50)),
              StatusIs(absl::StatusCode::kUnavailable, {"no answer"}));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(4));
  close(listener);
  unlink(path.c_str());
}

TEST(ClientShmTest, SharedMemoryIsFoundUsedAndGivesWhatGrpcGives) {
  ServerProcess server({"--shm-socket", SocketPath()});
  const auto shared = Connect(server.target());
  const auto plain = Connect(server.target(), 0);
  EXPECT_EQ(shared->transport(), Transport::kSharedMemory);
  EXPECT_EQ(plain->transport(), Transport::kGrpc);
  SKETCHKV_ASSERT_OK(shared->RegisterModel("m", Layout(), {}));
  const std::vector<std::byte> payload = RandomPayload(1);
  SKETCHKV_ASSERT_OK(plain->Put(PartOf(1, payload)));
  SKETCHKV_ASSERT_OK(shared->Put(PartOf(2, payload)));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const SharedBuffer buffer, shared->AllocateShared(2 * kMiB));
  const auto middle = buffer.bytes().subspan(4096, kMiB);
  std::memcpy(middle.data(), payload.data(), kMiB);
  SKETCHKV_ASSERT_OK(shared->Put(PartOf(3, middle)));
  for (const std::optional<ElementType> type :
       {std::optional<ElementType>(), std::optional(ElementType::kBf16)}) {
    SKETCHKV_ASSERT_OK_AND_ASSIGN(const GetResult want, plain->Get(GetOf(1, type)));
    for (const uint64_t hash : {1, 2, 3}) {
      SKETCHKV_ASSERT_OK_AND_ASSIGN(const GetResult got, shared->Get(GetOf(hash, type)));
      EXPECT_EQ(got.num_tokens, 128);
      EXPECT_EQ(got.payload, want.payload) << hash;
      std::vector<std::byte> into(want.payload.size());
      GetPart part = GetOf(hash, type);
      part.into = into;
      SKETCHKV_ASSERT_OK_AND_ASSIGN(const GetResult written, shared->Get(part));
      EXPECT_EQ(written.payload_bytes, into.size());
      EXPECT_EQ(into, want.payload) << hash;
      part.into = std::span(into).first(into.size() - 1);
      EXPECT_THAT(shared->Get(part), StatusIs(absl::StatusCode::kInvalidArgument, {"into has"}));
    }
  }
  EXPECT_THAT(shared->Get(GetOf(9, std::nullopt)), StatusIs(absl::StatusCode::kNotFound));
}

// What lies in shared memory goes several parts a message, each result to its own part.
TEST(ClientShmTest, ManyPartsAtOnceHaveTheirOwnResults) {
  constexpr uint64_t kParts = 70, kBad = 33;
  ServerProcess server({"--host-bytes", "256MiB", "--shm-socket", SocketPath()});
  const auto client = Connect(server.target());
  SKETCHKV_ASSERT_OK(client->RegisterModel("m", Layout(), {}));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const SharedBuffer shared, client->AllocateShared(kMiB));
  const std::vector<std::byte> payload = RandomPayload(1);
  std::copy(payload.begin(), payload.end(), shared.bytes().begin());
  std::vector<PutPart> puts;
  for (uint64_t i = 1; i <= kParts; ++i) puts.push_back(PartOf(i, shared.bytes()));
  puts[kBad].parent_hash = puts[kBad].block_hash;
  SKETCHKV_ASSERT_OK(client->Put(puts[7]));
  const auto results = client->PutAll(puts);
  ASSERT_EQ(results.size(), kParts);
  for (uint64_t i = 0; i < kParts; ++i) {
    if (i == kBad) {
      EXPECT_THAT(results[i], StatusIs(absl::StatusCode::kInvalidArgument, {"names itself"}));
      continue;
    }
    SKETCHKV_ASSERT_OK(results[i]);
    EXPECT_EQ(results[i]->already_present, i == 7) << i;
    EXPECT_TRUE(results[i]->sealed) << i;
  }
}

TEST(ClientShmTest, MorePartsThanFitWaitAndWhatNeverFitsTravels) {
  ServerProcess server({"--shm-socket", SocketPath()});
  const auto client = Connect(server.target(), 5 * kMiB / 2);
  const auto small = Connect(server.target(), kMiB / 2);
  EXPECT_EQ(client->transport(), Transport::kSharedMemory);
  EXPECT_EQ(small->transport(), Transport::kSharedMemory);
  SKETCHKV_ASSERT_OK(client->RegisterModel("m", Layout(), {}));
  const std::vector<std::byte> payload = RandomPayload(1);
  std::vector<PutPart> puts;
  std::vector<GetPart> gets;
  for (uint64_t hash = 1; hash <= 20; ++hash) {
    puts.push_back(PartOf(hash, payload));
    gets.push_back(GetOf(hash, ElementType::kBf16));
  }
  for (const auto& result : client->PutAll(puts)) SKETCHKV_EXPECT_OK(result);
  for (const auto& result : client->GetAll(gets)) SKETCHKV_EXPECT_OK(result);
  SKETCHKV_ASSERT_OK(small->Put(PartOf(30, payload)));
  SKETCHKV_EXPECT_OK(small->Get(GetOf(30, ElementType::kBf16)));
  EXPECT_THAT(small->AllocateShared(kMiB),
              StatusIs(absl::StatusCode::kResourceExhausted, {std::to_string(kMiB)}));
}

TEST(ClientShmTest, WithoutOrWithAnothersSocketEverythingGoesOverGrpc) {
  ServerProcess without({});
  const auto plain = Connect(without.target());
  EXPECT_EQ(plain->transport(), Transport::kGrpc);
  SKETCHKV_ASSERT_OK(plain->RegisterModel("m", Layout(), {}));
  const std::vector<std::byte> payload = RandomPayload(1);
  SKETCHKV_EXPECT_OK(plain->Put(PartOf(1, payload)));
  SKETCHKV_EXPECT_OK(plain->Get(GetOf(1, ElementType::kBf16)));
  EXPECT_THAT(plain->AllocateShared(100), StatusIs(absl::StatusCode::kUnavailable));

  // The socket is of one server, the target another.
  ServerProcess a({"--shm-socket", SocketPath("a")}), b({"--shm-socket", SocketPath("b")});
  EXPECT_EQ(Connect(a.target(), kMiB, SocketPath("b"))->transport(), Transport::kGrpc);
  EXPECT_EQ(Connect(a.target(), kMiB, SocketPath("nobody"))->transport(), Transport::kGrpc);
  EXPECT_EQ(Connect(a.target(), kMiB, SocketPath("a"))->transport(), Transport::kSharedMemory);
}

// Run by the next test in a process of its own, which it kills.
TEST(ClientShmTest, DISABLED_PutForEver) {
  const auto client = Connect(std::getenv("SKETCHKV_TEST_TARGET"));
  SKETCHKV_ASSERT_OK_AND_ASSIGN(const SharedBuffer buffer, client->AllocateShared(kMiB));
  const std::vector<std::byte> payload = RandomPayload(1);
  std::memcpy(buffer.bytes().data(), payload.data(), kMiB);
  for (uint64_t hash = 1;; ++hash) SKETCHKV_ASSERT_OK(client->Put(PartOf(hash, buffer.bytes())));
}

TEST(ClientShmTest, AClientKilledInTheMiddleOfPutsLeavesNothingPinnedAndFreesItsSegment) {
  const std::string all = std::to_string(8 * kMiB);
  ServerProcess server({"--shm-socket", SocketPath(), "--shm-bytes", all, "--host-bytes",
                        std::to_string(64 * kMiB)});
  const auto watcher = Connect(server.target(), 0);
  SKETCHKV_ASSERT_OK(watcher->RegisterModel("m", Layout(), {}));
  const pid_t child = fork();
  if (child == 0) {
    setenv("SKETCHKV_TEST_TARGET", server.target().c_str(), 1);
    execl("/proc/self/exe", "child", "--gtest_filter=ClientShmTest.DISABLED_PutForEver",
          "--gtest_also_run_disabled_tests", "--gtest_brief=1", nullptr);
    _exit(127);
  }
  const auto stats = [&] { return *watcher->GetStats(); };
  for (int i = 0; i < 3000 && stats().put_raw_bytes_total < 20 * kMiB; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_GE(stats().put_raw_bytes_total, 20 * kMiB);
  EXPECT_EQ(Connect(server.target(), kMiB)->transport(), Transport::kGrpc)
      << "the child has it all";
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  Transport transport = Transport::kGrpc;
  for (int i = 0; i < 1000 && transport == Transport::kGrpc; ++i) {
    transport = Connect(server.target(), 8 * kMiB)->transport();
    if (transport == Transport::kGrpc) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  EXPECT_EQ(transport, Transport::kSharedMemory);
  EXPECT_EQ(stats().tiers[0].pinned_bytes, 0);
  EXPECT_EQ(stats().tiers[0].blocks, stats().tiers[0].sealed_blocks);
}

}  // namespace
}  // namespace sketchkv
