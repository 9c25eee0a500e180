// What code compiled with -fsanitize=alignment,... calls when a check fails: an error of the launch
// instead of the end of the process. The compiler fixes these names, and that each kind's data
// begin with the place in the source.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cuda_emulation.h"

namespace {

struct Place {
  const char* file;
  uint32_t line, column;
};
struct TypeMismatch {
  Place place;
  const void* type;
  unsigned char log_alignment, kind;
};

[[noreturn]] void report(const Place& place, const std::string& what) {
  const std::string text = what + " at " + place.file + ":" + std::to_string(place.line) + ":" +
                           std::to_string(place.column);
  if (matcalc::cuda::emulation::in_kernel()) matcalc::cuda::emulation::fail(text);
  // The compiler takes it that these functions do not throw; on the host nothing else is left.
  std::fprintf(stderr, "%s\n", text.c_str());
  std::abort();
}

}  // namespace

extern "C" {

[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, uintptr_t address) {
  const unsigned alignment = 1u << data->log_alignment;
  if (address == 0) report(data->place, "use of a null pointer");
  report(data->place, "address " + std::to_string(address % 1024) +
                          " modulo 1024 is not aligned to " + std::to_string(alignment) + " bytes");
}
[[noreturn]] void __ubsan_handle_shift_out_of_bounds_abort(Place* place, uintptr_t, uintptr_t) {
  report(*place, "shift out of bounds");
}
[[noreturn]] void __ubsan_handle_divrem_overflow_abort(Place* place, uintptr_t, uintptr_t) {
  report(*place, "division by zero, or one too large");
}
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(Place* place, uintptr_t) {
  report(*place, "index out of bounds");
}
[[noreturn]] void __ubsan_handle_add_overflow_abort(Place* place, uintptr_t, uintptr_t) {
  report(*place, "overflow of a signed sum");
}
[[noreturn]] void __ubsan_handle_sub_overflow_abort(Place* place, uintptr_t, uintptr_t) {
  report(*place, "overflow of a signed difference");
}
[[noreturn]] void __ubsan_handle_mul_overflow_abort(Place* place, uintptr_t, uintptr_t) {
  report(*place, "overflow of a signed product");
}
[[noreturn]] void __ubsan_handle_negate_overflow_abort(Place* place, uintptr_t) {
  report(*place, "overflow of a negation");
}

}  // extern "C"
