#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace matcalc::cpu {
namespace {

constexpr const char* kVariable = "MATCALC_CPU_ISA";
constexpr const char* kNames[kIsaCount] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
constexpr int kUndecided = -1;

std::atomic<int> current{kUndecided};

std::string names_of(bool supported) {
  std::string names;
  for (int i = 0; i < kIsaCount; ++i) {
    if (supported && !isa_supported(static_cast<Isa>(i))) continue;
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
                             "\", which this CPU does not have; it has " + names_of(true));
  }
  throw std::runtime_error(source + " names \"" + name + "\", expected one of " + names_of(false) +
                           "; this CPU has " + names_of(true));
}

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
