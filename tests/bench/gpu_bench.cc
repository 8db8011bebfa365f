// The contenders of tests/bench.sh --gpu: kernels, timed by CUDA events.
// Usage: sketchkv_bench_gpu serve
#include <cstdio>
#include <string>

#include "tests/bench/contender.h"
#include "tests/bench/gpu_chain_contenders.h"
#include "tests/bench/gpu_codec_contenders.h"
#include "tests/bench/gpu_contender.h"

int main(int argc, char** argv) {
  if (argc != 2 || std::string(argv[1]) != "serve") {
    std::fprintf(stderr, "usage: sketchkv_bench_gpu serve\n");
    return 2;
  }
  sketchkv::bench::Registry registry;
  registry.AddFact("card", sketchkv::bench::DescribeCard());
  sketchkv::bench::AddGpuChainContenders(&registry);
  sketchkv::bench::AddGpuCodecContenders(&registry);
  sketchkv::bench::Serve(registry);
}
