#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace matcalc::cpu {
namespace {

constexpr const char* kVariable = "MATCALC_CPU_ISA";
constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
constexpr int kUndecided = -1;

std::atomic<int> current{kUndecided};

std::string supported_names() {
  std::string names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (!isa_supported(static_cast<Isa>(i))) continue;
    if (!names.empty()) names += ", ";
    names += kNames[i];
  }
  return names;
}

// `source` says who asked, for the error.
Isa parse(const std::string& source, const char* name) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, kNames[i]) != 0) continue;
    if (isa_supported(static_cast<Isa>(i))) return static_cast<Isa>(i);
    throw std::runtime_error(source + " names \"" + name +
                             "\", which this CPU does not have; it has " + supported_names());
  }
  throw std::runtime_error(
      source + " names \"" + name +
      "\", expected one of scalar, avx2, avx512, avx512_bf16, amx_bf16; this CPU has " +
      supported_names());
}

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know "f16c".
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

#if defined(__x86_64__)
// Linux lets a process use the tiles, whose state is large, once it has asked.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // CPUID leaf 7, EDX
  constexpr int kAsk = 0x1023, kTileData = 18;            // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kBf16) != 0 && (d & kTile) != 0 &&
           syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}
#endif

Isa default_isa() {
  const char* name = std::getenv(kVariable);
  if (name != nullptr && *name != '\0') {
    return parse(std::string("environment variable ") + kVariable, name);
  }
  int best = kIsaCount - 1;
  while (!isa_supported(static_cast<Isa>(best))) --best;  // scalar always is
  return static_cast<Isa>(best);
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  // Each list is what the files of that instruction set are compiled with. The compiler's check
  // covers the operating system's part too: whether it saves the wide registers.
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             isa_supported(Isa::kAvx2);
    case Isa::kAvx512Bf16:
      return __builtin_cpu_supports("avx512bf16") && isa_supported(Isa::kAvx512);
    case Isa::kAmxBf16:
      return isa_supported(Isa::kAvx512Bf16) && has_amx();
  }
  return false;
#else
  return isa == Isa::kScalar;
#endif
}

Isa isa() {
  int chosen = current.load(std::memory_order_relaxed);
  if (chosen == kUndecided) {
    chosen = static_cast<int>(default_isa());
    // A choice that set_isa() made meanwhile stands.
    int expected = kUndecided;
    if (!current.compare_exchange_strong(expected, chosen)) chosen = expected;
  }
  return static_cast<Isa>(chosen);
}

void set_isa(const char* name) {
  const Isa chosen = *name == '\0' ? default_isa() : parse("set_cpu_isa", name);
  current.store(static_cast<int>(chosen));
}

}  // namespace matcalc::cpu
