// A server process and worker processes that share memory on one card, by the C++ client.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "service/gpu/open_gpu.h"
#include "sketchkv/client.h"
#include "tests/gpu/device_array.h"
#include "tests/testing/server_process.h"
#include "tests/testing/status_matchers.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::CheckCuda;
using testing::DeviceArray;

constexpr uint32_t kTokens = 64;
constexpr uint32_t kDim = 128;
constexpr uint32_t kHeads = 4;
constexpr uint32_t kGroup = 4;  // queries a kv head

CacheLayout Layout(uint32_t layers) {
  return {.num_layers = layers,
          .num_kv_heads = kHeads,
          .head_dim = kDim,
          .value_dim = kDim,
          .block_tokens = kTokens};
}
size_t BlockBytes(uint32_t layers) { return size_t{layers} * kHeads * kTokens * 2 * kDim * 2; }

std::unique_ptr<Client> Connect(const std::string& target, uint32_t layers,
                                const std::vector<ProfileSpec>& profiles = {}) {
  auto client = Client::Create({.target = target, .timeout = milliseconds(60000)});
  EXPECT_THAT(client, IsOk());
  EXPECT_THAT((*client)->RegisterModel("m", Layout(layers), profiles), IsOk());
  return *std::move(client);
}

std::vector<std::byte> RandomRows(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> rows(bytes);
  for (size_t i = 0; i < bytes; i += 2) {
    const auto number = static_cast<uint16_t>(0x3f00 + random() % 256 + (random() & 0x8000));
    std::memcpy(rows.data() + i, &number, sizeof(number));
  }
  return rows;
}
std::vector<float> RandomQueries(size_t count) {
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> queries(count);
  for (float& query : queries) query = normal(random);
  return queries;
}

// How another process names bytes of an allocation of this one.
template <typename T>
GpuMemory Shared(const DeviceArray<T>& array, uint64_t offset, uint64_t length) {
  cudaIpcMemHandle_t handle;
  CheckCuda(cudaIpcGetMemHandle(&handle, array.data()));
  GpuMemory memory{.offset = offset, .length = length};
  std::memcpy(memory.ipc_handle.data(), &handle, sizeof(handle));
  return memory;
}
template <typename T>
GpuMemory Shared(const DeviceArray<T>& array) {
  return Shared(array, 0, array.size() * sizeof(T));
}
// After this the bytes are there for other processes too.
DeviceArray<std::byte> OnCard(std::span<const std::byte> bytes) {
  DeviceArray<std::byte> array(bytes);
  CheckCuda(cudaDeviceSynchronize());
  return array;
}

BlockId Hash(uint64_t n) {
  BlockId hash(16, '\0');
  std::memcpy(hash.data(), &n, sizeof(n));
  return hash;
}
PutPart PartOf(uint64_t hash, uint64_t parent = 0) {
  PutPart part{.model = "m", .block_hash = Hash(hash), .num_tokens = kTokens};
  if (parent != 0) part.parent_hash = Hash(parent);
  return part;
}
PutPart OnCardPart(uint64_t hash, const GpuMemory& memory, uint64_t parent = 0) {
  PutPart part = PartOf(hash, parent);
  part.gpu_payload = memory;
  return part;
}

size_t FreeBytes() {
  size_t free = 0, total = 0;
  CheckCuda(cudaMemGetInfo(&free, &total));
  return free;
}

// Puts block after block from the card until it is killed; says so on `ready` after the first.
int RunWorker(const std::string& target, int ready, size_t allocation_bytes) {
  constexpr uint32_t kLayers = 32;
  const std::unique_ptr<Client> client = Connect(target, kLayers);
  DeviceArray<std::byte> memory(allocation_bytes);
  memory.Fill(0);
  CheckCuda(cudaDeviceSynchronize());
  for (uint64_t hash = 1000;; ++hash) {
    const auto put = client->Put(OnCardPart(hash, Shared(memory, 0, BlockBytes(kLayers))));
    if (!put.ok()) return 1;
    if (hash == 1000 && write(ready, "r", 1) != 1) return 1;
  }
}

class GpuIpcTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kLayers = 3;

  void SetUp() override {
    SKETCHKV_NEED_GPU();
    server_.emplace(
        std::vector<std::string>{"--gpu", "0", "--gpu-bytes", "256MiB", "--host-bytes", "1GiB"});
  }
  std::vector<std::byte> Cells(Client* client, uint64_t hash) {
    const auto got = client->Get({.model = "m", .block_hash = Hash(hash), .type = std::nullopt});
    EXPECT_THAT(got, IsOk());
    return got.ok() ? got->payload : std::vector<std::byte>();
  }
  void ExpectNothingPinned(Client* client) {
    uint64_t pinned = 1;
    for (int i = 0; i < 500 && pinned > 0; ++i) {
      std::this_thread::sleep_for(milliseconds(10));
      const auto stats = client->GetStats();
      ASSERT_THAT(stats, IsOk());
      pinned = 0;
      for (const ServerStats::Tier& tier : stats->tiers) pinned += tier.pinned_bytes;
    }
    EXPECT_EQ(pinned, 0u);
  }

  std::optional<ServerProcess> server_;
};

TEST_F(GpuIpcTest, PutsGetsAndAttendsAsOverGrpc) {
  // Tuned kernels, and between them a layer of the general path.
  const auto client = Connect(server_->target(), kLayers,
                              {{.name = "qjl3p", .layer_count = 1},
                               {.name = "qjl4p", .layer_begin = 1, .layer_count = 1},
                               {.name = "qjl3p", .layer_begin = 2}});
  for (uint64_t i = 0; i < 4; ++i) {
    const std::vector<std::byte> rows = RandomRows(BlockBytes(kLayers), i);
    const DeviceArray<std::byte> memory = OnCard(rows);
    const auto put = client->Put(OnCardPart(11 + i, Shared(memory), i == 0 ? 0 : 10 + i));
    SKETCHKV_ASSERT_OK(put);
    EXPECT_TRUE(put->sealed);
    PutPart part = PartOf(21 + i, i == 0 ? 0 : 20 + i);
    part.payload = rows;
    SKETCHKV_ASSERT_OK(client->Put(part));
    EXPECT_EQ(Cells(client.get(), 11 + i), Cells(client.get(), 21 + i));
  }
  // Decoded rows.
  GetPart get{.model = "m", .block_hash = Hash(12), .type = ElementType::kBf16};
  const auto travelled = client->Get(get);
  SKETCHKV_ASSERT_OK(travelled);
  DeviceArray<std::byte> into(travelled->payload.size() + 512);
  into.Fill(0x5A);
  CheckCuda(cudaDeviceSynchronize());
  get.into_gpu = Shared(into, 256, travelled->payload.size() + 16);
  SKETCHKV_ASSERT_OK(client->Get(get));
  const std::vector<std::byte> bytes = into.ToHost();
  EXPECT_EQ(std::memcmp(bytes.data() + 256, travelled->payload.data(), travelled->payload.size()),
            0);
  EXPECT_EQ(bytes[255], std::byte{0x5A});
  EXPECT_EQ(bytes[256 + travelled->payload.size()], std::byte{0x5A});
  // Attention over all four blocks.
  const std::vector<float> queries = RandomQueries(2 * kHeads * kGroup * kDim);
  AttentionCall call{.model = "m", .queries_per_kv_head = kGroup};
  call.items = {{.tip = Hash(14), .layer = 1, .num_query_tokens = 2}};
  call.queries = queries;
  const auto want = client->Attend(call);
  SKETCHKV_ASSERT_OK(want);
  const DeviceArray<float> gpu_queries{std::span<const float>(queries)};
  DeviceArray<float> outputs(2 * kHeads * kGroup * (kDim + 1) + 64);
  outputs.Fill(0x5A);
  CheckCuda(cudaDeviceSynchronize());
  call.queries = {};
  call.gpu_queries = Shared(gpu_queries);
  call.gpu_outputs = Shared(outputs);
  const auto session = client->NewAttendSession();
  const auto attended = session->Attend(call);
  SKETCHKV_ASSERT_OK(attended);
  EXPECT_EQ((*attended)[0].transport, Transport::kGpuMemory);
  const std::vector<float> got = outputs.ToHost();
  const size_t rows = 2 * kHeads * kGroup;
  for (size_t i = 0; i < rows * kDim; ++i) ASSERT_NEAR(got[i], (*want)[0].out[i], 1e-5) << i;
  for (size_t i = 0; i < rows; ++i) {
    ASSERT_NEAR(got[rows * kDim + i], (*want)[0].lse[i], 1e-5) << i;
  }
  uint32_t beyond;
  std::memcpy(&beyond, &got[rows * (kDim + 1)], sizeof(beyond));
  EXPECT_EQ(beyond, 0x5A5A5A5Au);
  ExpectNothingPinned(client.get());
}

// Of small allocations CUDA keeps several in one; and what is freed is soon given out again, while
// the server still has it open.
TEST_F(GpuIpcTest, SmallAndReusedAllocationsAreNotMistakenForOthers) {
  const auto client = Connect(server_->target(), 1);
  const size_t bytes = BlockBytes(1);
  uint64_t hash = 1;
  for (int round = 0; round < 4; ++round) {
    std::vector<DeviceArray<std::byte>> arrays;
    std::vector<uint64_t> hashes;
    for (int i = 0; i < 4; ++i) {
      arrays.push_back(OnCard(RandomRows(bytes, hash)));
      hashes.push_back(hash++);
    }
    for (int i = 0; i < 4; ++i) {
      SKETCHKV_ASSERT_OK(client->Put(OnCardPart(hashes[i], Shared(arrays[i]))));
    }
    arrays.clear();
    for (const uint64_t one : hashes) {
      const std::vector<std::byte> rows = RandomRows(bytes, one);
      PutPart part = PartOf(1000 + one);
      part.payload = rows;
      SKETCHKV_ASSERT_OK(client->Put(part));
      EXPECT_EQ(Cells(client.get(), one), Cells(client.get(), 1000 + one)) << one;
    }
  }
}

TEST_F(GpuIpcTest, WhatTheServerCannotOpenIsRefusedAndItGoesOn) {
  const auto client = Connect(server_->target(), kLayers);
  const size_t bytes = BlockBytes(kLayers);
  const DeviceArray<std::byte> memory = OnCard(RandomRows(bytes, 1));
  GpuMemory unknown = Shared(memory);
  for (size_t i = 0; i < unknown.ipc_handle.size(); i += 3) unknown.ipc_handle[i] ^= std::byte{85};
  EXPECT_THAT(client->Put(OnCardPart(1, unknown)),
              StatusIs(absl::StatusCode::kInvalidArgument, {"gpu_memory.ipc_handle"}));
  EXPECT_THAT(client->Put(OnCardPart(1, Shared(memory, uint64_t{1} << 30, bytes))),
              StatusIs(absl::StatusCode::kInvalidArgument, {"end outside the allocation"}));
  SKETCHKV_ASSERT_OK(client->Put(OnCardPart(1, Shared(memory))));
}

TEST(GpuIpcOwnTest, AllocationsOfThisProcessAreRefused) {
  SKETCHKV_NEED_GPU();
  const auto gpu = OpenGpu({.tier_bytes = uint64_t{64} << 20});
  SKETCHKV_ASSERT_OK(gpu);
  const DeviceArray<std::byte> memory = OnCard(RandomRows(1 << 22, 1));
  const GpuMemory named = Shared(memory);
  GpuIpcHandle handle;
  std::memcpy(handle.data(), named.ipc_handle.data(), handle.size());
  EXPECT_THAT((*gpu)->OpenShared(handle),
              StatusIs(absl::StatusCode::kInvalidArgument, {"own process"}));
  SKETCHKV_EXPECT_OK((*gpu)->Check());
}

TEST_F(GpuIpcTest, AWorkerThatDiesLeavesNothingBehind) {
  constexpr size_t kWorkerBytes = size_t{2} << 30;
  std::array<int, 2> ready;
  ASSERT_EQ(pipe(ready.data()), 0);
  const std::string target = server_->target(), fd = std::to_string(ready[1]);
  const std::string bytes = std::to_string(kWorkerBytes);
  const size_t free_before = FreeBytes();
  const pid_t worker = fork();
  if (worker == 0) {
    execl("/proc/self/exe", "gpu_ipc_test", "worker", target.c_str(), fd.c_str(), bytes.c_str(),
          nullptr);
    _exit(127);
  }
  close(ready[1]);
  char first = 0;
  ASSERT_EQ(read(ready[0], &first, 1), 1) << "the worker could not put";
  close(ready[0]);
  std::this_thread::sleep_for(milliseconds(50));  // it goes on putting
  ASSERT_EQ(kill(worker, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(waitpid(worker, &status, 0), worker);
  EXPECT_TRUE(WIFSIGNALED(status)) << "it ended by itself";

  const auto client = Client::Create({.target = target});
  SKETCHKV_ASSERT_OK(client);
  ExpectNothingPinned(client->get());
  const std::vector<std::byte> rows = RandomRows(BlockBytes(32), 1);
  const DeviceArray<std::byte> memory = OnCard(rows);
  SKETCHKV_ASSERT_OK((*client)->Put(OnCardPart(1, Shared(memory))));
  PutPart part = PartOf(2);
  part.payload = rows;
  SKETCHKV_ASSERT_OK((*client)->Put(part));
  EXPECT_EQ(Cells(client->get(), 1), Cells(client->get(), 2));
  // The server lets go of its memory, some seconds after its last use.
  size_t left = FreeBytes();
  for (int i = 0; i < 200 && left + kWorkerBytes / 2 < free_before; ++i) {
    std::this_thread::sleep_for(milliseconds(100));
    left = FreeBytes();
  }
  EXPECT_GE(left + kWorkerBytes / 2, free_before);
}

}  // namespace
}  // namespace sketchkv

int main(int argc, char** argv) {
  if (argc == 5 && std::strcmp(argv[1], "worker") == 0) {
    return sketchkv::RunWorker(argv[2], std::atoi(argv[3]), std::strtoull(argv[4], nullptr, 10));
  }
  ::testing::InitGoogleMock(&argc, argv);
  return RUN_ALL_TESTS();
}
