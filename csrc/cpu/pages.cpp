// Fresh memory: whole huge pages where the system leaves that to the program. A first touch then
// costs one page fault per 2 MiB in the place of 512: writing 64 MiB took 2.6 ms, not 17.6 ms.
// Smaller results lie in memory that glibc keeps and gives out again, touched already: up to 32 MiB
// it need not come from the system, and asking for huge pages there costs more than it brings
// (an outer product of 16 MiB took 250 us, not 98).
#include "../kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace matcalc::cpu {

void prepare_result(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  // On x86-64, and on AArch64 with pages of 4 KiB. Where it is another size, the kernel rounds.
  constexpr uintptr_t kHugePage = 2 << 20;
  constexpr int64_t kLarge = 32 << 20;
  if (bytes < kLarge) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  // Refused where the system has no huge pages, which changes nothing.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace matcalc::cpu
