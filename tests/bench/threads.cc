#include "tests/bench/threads.h"

#include <pthread.h>
#include <sched.h>

#include <thread>
#include <vector>

namespace sketchkv::bench {
namespace {

void PinTo(int index) {
  cpu_set_t may;
  sched_getaffinity(0, sizeof(may), &may);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &may) || index-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
    return;
  }
}

}  // namespace

void OnThreads(int count, const std::function<void(int)>& work) {
  if (count == 1) return work(0);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([i, &work] {
      PinTo(i);
      work(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace sketchkv::bench
