// The caches of the processor, as far as the system tells.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace matcalc::cpu {

struct Caches {
  int64_t l1_ways = 8;  // of data; a core's own
  int64_t l2_bytes = 1 << 20;
};

// Lines that are multiples of so many bytes apart share a set of L1, which keeps as many of them as
// it has ways.
constexpr int64_t kCollidingLines = 4096;

inline const Caches& caches() {
  static const Caches known = [] {
    Caches found;
#if defined(_SC_LEVEL1_DCACHE_ASSOC)
    const auto ask = [](int name, int64_t& fact) {
      if (const long value = sysconf(name); value > 0) fact = value;
    };
    ask(_SC_LEVEL1_DCACHE_ASSOC, found.l1_ways);
    ask(_SC_LEVEL2_CACHE_SIZE, found.l2_bytes);
#endif
    return found;
  }();
  return known;
}

}  // namespace matcalc::cpu
