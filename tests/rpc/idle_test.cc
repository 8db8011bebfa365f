// The real server process after a pause. gRPC's callback threads sleep for 100 ms at a time once
// none of them has seen an event for a second: a call that comes 1.04 s after they were all busy
// would wait for 60 ms.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "sketchkv/v1/cache.grpc.pb.h"
#include "tests/testing/server_process.h"

namespace sketchkv {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPause{1040};

struct QuietServer {
  QuietServer()
      : process({}),
        cache(v1::Cache::NewStub(
            grpc::CreateChannel(process.target(), grpc::InsecureChannelCredentials()))) {}
  milliseconds TimeOneCall() const {
    grpc::ClientContext call;
    v1::GetStatsResponse response;
    const auto begin = steady_clock::now();
    const grpc::Status status = cache->GetStats(&call, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return std::chrono::duration_cast<milliseconds>(steady_clock::now() - begin);
  }
  // So many calls at once that all of gRPC's threads see some.
  void KeepAllBusy() const {
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 8; ++caller) {
      callers.emplace_back([this] {
        for (int i = 0; i < 20; ++i) (void)TimeOneCall();
      });
    }
    for (std::thread& caller : callers) caller.join();
  }

  ServerProcess process;  // called by nobody else
  std::unique_ptr<v1::Cache::Stub> cache;
};

TEST(IdleTest, ACallAfterAPauseDoesNotWaitForSleepingThreads) {
  const QuietServer server;
  milliseconds fastest = milliseconds::max();
  for (int pause = 0; pause < 4; ++pause) {
    server.KeepAllBusy();
    std::this_thread::sleep_for(kPause);
    // The fastest: a busy machine may delay any of them, sleeping threads delay all.
    fastest = std::min(fastest, server.TimeOneCall());
  }
  EXPECT_LT(fastest, milliseconds(20));
}

}  // namespace
}  // namespace sketchkv
