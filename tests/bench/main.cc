// sketchkv_bench: the contenders that run in one process. tests/bench/main.py drives it.

#include "tests/bench/contender.h"
#include "tests/bench/exact_contenders.h"
#include "tests/bench/sketch_contenders.h"

int main() {
  sketchkv::bench::Registry registry;
  sketchkv::bench::AddSketchContenders(&registry);
  sketchkv::bench::AddExactContenders(&registry);
  registry.AddAbsent("openblas.score", "built without OpenBLAS");
  registry.AddAbsent("onednn.score", "built without oneDNN");
  sketchkv::bench::Serve(registry);
}
