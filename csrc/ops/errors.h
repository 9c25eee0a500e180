// Errors of the ops. Every text names the op, the argument, what was expected and what came; it
// reaches Python as a RuntimeError with nothing added.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>

namespace matcalc {

// Prints as torch prints a shape: [3, 4].
struct Shape {
  const int64_t* sizes;
  int64_t dim;
};

inline std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int64_t i = 0; i < shape.dim; ++i) out << (i == 0 ? "" : ", ") << shape.sizes[i];
  return out << ']';
}

template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace matcalc
