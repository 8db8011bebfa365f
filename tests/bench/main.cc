// sketchkv_bench: the contenders that run in one process. tests/bench/main.py drives it.

#include "absl/strings/str_join.h"
#include "tests/bench/codec_contenders.h"
#include "tests/bench/contender.h"
#include "tests/bench/exact_contenders.h"
#include "tests/bench/isa_levels.h"
#include "tests/bench/memory_contender.h"
#include "tests/bench/onednn_contender.h"
#include "tests/bench/openblas_contender.h"
#include "tests/bench/popcount_contender.h"
#include "tests/bench/qjl_contender.h"
#include "tests/bench/sketch_contenders.h"

namespace sketchkv::bench {
namespace {

Registry AllContenders() {
  Registry registry;
  // The CPU kernel levels of this machine, the best first.
  registry.AddFact("isas", absl::StrJoin(IsaLevels(), " "));
  AddSketchContenders(&registry);
  AddCodecContenders(&registry);
  AddExactContenders(&registry);
  AddMemoryContender(&registry);
#if SKETCHKV_BENCH_X86
  AddPopcountContender(&registry);
#else
  registry.AddAbsent("popcount.score", "not written for this architecture");
#endif
#if SKETCHKV_BENCH_OPENBLAS
  AddOpenBlasContender(&registry);
#else
  registry.AddAbsent("openblas.score", "built without OpenBLAS");
#endif
#if SKETCHKV_BENCH_OPENBLAS && SKETCHKV_BENCH_X86
  AddQjlContender(&registry);
#else
  registry.AddAbsent("qjl.encode", "built without OpenBLAS");
#endif
#if SKETCHKV_BENCH_ONEDNN
  AddOneDnnContender(&registry);
#else
  registry.AddAbsent("onednn.score", "built without oneDNN");
#endif
  return registry;
}

}  // namespace
}  // namespace sketchkv::bench

int main() { sketchkv::bench::Serve(sketchkv::bench::AllContenders()); }
