// Fresh memory: whole huge pages where the system leaves that to the program. A first touch then
// costs one page fault per 2 MiB in the place of 512: writing 64 MiB took 2.6 ms, not 17.6 ms.
//
// Memory that the allocator gives out again was touched before; asking for huge pages there brings
// nothing and costs time (an outer product of 16 MiB took 250 us, not 98). Whether it was, a page
// in the middle tells.
#include "../kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace matcalc::cpu {

void prepare_result(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  // On x86-64, and on AArch64 with pages of 4 KiB. Where it is another size, the kernel rounds.
  constexpr uintptr_t kHugePage = 2 << 20;
  constexpr int64_t kLarge = 2 * kHugePage;  // so that a whole huge page lies within
  if (bytes < kLarge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  const uintptr_t middle = begin + (end - begin) / 2 / kHugePage * kHugePage;
  unsigned char resident = 0;
  if (mincore(reinterpret_cast<void*>(middle), 1, &resident) == 0 && (resident & 1) != 0) return;
  // Refused where the system has no huge pages, which changes nothing.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace matcalc::cpu
