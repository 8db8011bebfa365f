// sketchkv_bench_service: the contenders that talk to a server. tests/bench/main.py drives it.

#include "tests/bench/bare_contenders.h"
#include "tests/bench/contender.h"
#if SKETCHKV_BENCH_CUDA
#include "tests/bench/gpu_sdk_contenders.h"
#endif
#include "tests/bench/layer_contender.h"
#include "tests/bench/redis_contenders.h"
#include "tests/bench/sdk_contenders.h"

int main() {
  sketchkv::bench::Registry registry;
  sketchkv::bench::AddSdkContenders(&registry);
#if SKETCHKV_BENCH_CUDA
  sketchkv::bench::AddGpuSdkContenders(&registry);
#endif
  sketchkv::bench::AddBareContenders(&registry);
  sketchkv::bench::AddRedisContenders(&registry);
  sketchkv::bench::AddLayerContender(&registry);
  sketchkv::bench::Serve(registry);
}
