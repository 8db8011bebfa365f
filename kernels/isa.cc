#include "kernels/isa.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/kernel_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sketchkv {
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports does not know F16C in every compiler; the AVX2 check beside it makes sure
// that the operating system saves the registers.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

absl::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512-vnni";
    case Isa::kNeon:
      return "neon";
  }
  return "unknown";
}

bool IsaSupported(Isa isa) {
  if (isa == Isa::kScalar) return true;
#if defined(__aarch64__)
  return isa == Isa::kNeon;
#elif defined(__x86_64__)
  if (isa == Isa::kNeon) return false;
  // Exactly the flags of kernels/CMakeLists.txt and what they imply.
  const bool avx2 = __builtin_cpu_supports("avx2") && HasF16c();
  if (isa == Isa::kAvx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (isa == Isa::kAvx512) return avx512;
  return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

absl::StatusOr<Isa> ChooseIsa(absl::string_view forced) {
  if (forced.empty() || forced == "auto") {
    for (Isa isa : {Isa::kAvx512Vnni, Isa::kAvx512, Isa::kAvx2, Isa::kNeon}) {
      if (IsaSupported(isa)) return isa;
    }
    return Isa::kScalar;
  }
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kNeon}) {
    if (IsaName(isa) != forced) continue;
    if (IsaSupported(isa)) return isa;
    return absl::FailedPreconditionError(
        absl::StrCat("isa is '", forced, "', but this CPU or this build lacks it"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "isa is '", forced, "', must be one of auto, scalar, avx2, avx512, avx512-vnni, neon"));
}

const KernelTable& KernelsOf(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512Vnni) return kAvx512VnniKernels;
  if (isa == Isa::kAvx512) return kAvx512Kernels;
  if (isa == Isa::kAvx2) return kAvx2Kernels;
#elif defined(__aarch64__)
  if (isa == Isa::kNeon) return kNeonKernels;
#endif
  return kScalarKernels;
}

}  // namespace sketchkv
