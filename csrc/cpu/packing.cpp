#include "packing.h"

#include <algorithm>

#include "../offsets.h"
#include "ahead.h"

namespace matcalc::cpu {
namespace {

// Steps along k for which several panels of A are packed in turn, where their rows share lines.
constexpr int64_t kSharedLines = 16;

// Steps along k of a B whose rows are contiguous that are packed for all panels of columns in turn.
constexpr int64_t kRowsAcross = 64;

}  // namespace

void PackOffsets::take(Scratch& scratch, int64_t depth, int64_t cols, int64_t rows) {
  const auto list = [&](int64_t count) {
    return count == 0 ? nullptr : scratch.take<int64_t>(count);
  };
  for (int64_t** of_term : {&k_a, &k_s, &k_b, &k_b2, &k_index}) *of_term = list(depth);
  for (int64_t** of_col : {&n_b, &n_b2, &n_index}) *of_col = list(cols);
  for (int64_t** of_row : {&m_a, &m_s}) *of_row = list(rows);
}

Steps::Steps(const Contraction& op)
    : m_a(uniform_step(op.m, &ContractionDim::a, kNoStep)),
      k_a(uniform_step(op.k, &ContractionDim::a, kNoStep)),
      k_s(uniform_step(op.k, &ContractionDim::s, kNoStep)),
      k_b(uniform_step(op.k, &ContractionDim::b, kNoStep)),
      k_b2(uniform_step(op.k, &ContractionDim::b2, kNoStep)),
      n_b(uniform_step(op.n, &ContractionDim::b, kNoStep)),
      m_c(uniform_step(op.m, &ContractionDim::c, kNoStep)),
      n_c(uniform_step(op.n, &ContractionDim::c, kNoStep)) {}

template <class T, class P>
Packing<T, P>::Packing(const Contraction& op, const GemmKernels<T, P>& kernels, const Steps& steps)
    : op_(op),
      kernels_(kernels),
      rows_(op.m.numel()),
      size_a_(dtype_size(op.dtype_a)),
      steps_(steps) {}

template <class T, class P>
void Packing<T, P>::load_cols(PackOffsets& offsets, int64_t n0, int64_t n1) const {
  if (offsets.n_b == nullptr) return;
  offsets_of(op_.n, &Dim::b, n0, n1, offsets.n_b);
  if (op_.fold != Fold::kNone) {
    offsets_of(op_.n, &Dim::b2, n0, n1, offsets.n_b2);
    const int64_t size = innermost(op_.n).size;
    for (int64_t j = n0; j < n1; ++j) offsets.n_index[j - n0] = j % size;
  }
}

template <class T, class P>
void Packing<T, P>::load_depth(PackOffsets& offsets, int64_t k0, int64_t k1) const {
  offsets.k0 = k0;
  offsets.depth = k1 - k0;
  if (offsets.k_a == nullptr) return;
  offsets_of(op_.k, &Dim::a, k0, k1, offsets.k_a);
  offsets_of(op_.k, &Dim::b, k0, k1, offsets.k_b);
  if (op_.s != nullptr) offsets_of(op_.k, &Dim::s, k0, k1, offsets.k_s);
  if (op_.fold != Fold::kNone) {
    offsets_of(op_.k, &Dim::b2, k0, k1, offsets.k_b2);
    const int64_t size = innermost(op_.k).size;
    for (int64_t k = k0; k < k1; ++k) offsets.k_index[k - k0] = k % size;
  }
}

template <class T, class P>
void Packing<T, P>::pack_b(const PackOffsets& offsets, const char* b, int64_t j0, int64_t cols,
                           P* packed) const {
  const int64_t nr = kernels_.nr, panel_depth = kernels_.packed_depth(offsets.depth);
  PackSource source{};
  source.src = b;
  source.k_step = steps_.k_b;
  source.fold = op_.fold;
  source.k_offset2 = offsets.k_b2;
  source.k_step2 = steps_.k_b2;
  source.k_index = offsets.k_index;
  source.factor = 1;
  // A row of B in memory is a few lines to each panel: so many rows at a time are packed across all
  // panels, before the processor loses sight of their pages.
  const bool by_rows = steps_.n_b == 1 && steps_.k_b != kNoStep && op_.fold == Fold::kNone;
  const int64_t chunk = by_rows ? kRowsAcross : offsets.depth;
  for (int64_t k = 0; k < offsets.depth; k += chunk) {
    const int64_t depth = std::min(chunk, offsets.depth - k);
    source.k_offset = offsets.k_b + k;
    P* const first = packed + kernels_.packed_depth(k) * nr;
    for (int64_t j = 0; j < cols; j += nr) {
      const int64_t width = std::min(nr, cols - j);
      source.w_offset = offsets.n_b + j0 + j;
      source.w_offset2 = offsets.n_b2 + j0 + j;
      source.w_index = offsets.n_index + j0 + j;
      pack_runs(kernels_.pack_cols, offsets.k0, op_.dtype_b, &Dim::b, first + j * panel_depth, nr,
                width, depth, source);
    }
  }
}

template <class T, class P>
void Packing<T, P>::pack_a(PackOffsets& offsets, const char* a, const char* s, int64_t i,
                           int64_t rows, int64_t sharing, P* packed) const {
  offsets_of(op_.m, &Dim::a, i, i + rows, offsets.m_a);
  PackSource source{};
  source.src = a;
  source.k_offset = offsets.k_a;
  source.k_step = steps_.k_a;
  source.conj = op_.conj_a;
  source.fold = Fold::kNone;
  source.factor = op_.scale;
  if (op_.s != nullptr) {
    offsets_of(op_.m, &Dim::s, i, i + rows, offsets.m_s);
    source.scale = s;
    source.scale_k_offset = offsets.k_s;
    source.scale_k_step = steps_.k_s;
    source.conj_scale = op_.conj_s;
  }
  // The next panel of a tall A, whose rows are too short for the hardware to see them coming.
  const int64_t span = small_span(rows, steps_.m_a, offsets.depth, steps_.k_a, size_a_);
  if (span > 0 && i + 2 * rows <= rows_) fetch<0>(a + (i + rows) * steps_.m_a * size_a_, span);
  const int64_t together = sharing * kernels_.mr;
  for (int64_t row = 0; row < rows; row += together) {
    source.w_offset = offsets.m_a + row;
    source.scale_w_offset = offsets.m_s + row;
    pack_panels(offsets, a, std::min(together, rows - row), source, packed);
    packed += together * kernels_.packed_depth(offsets.depth);
  }
}

// Panels whose rows share lines of memory, so many steps of the depth at a time.
template <class T, class P>
void Packing<T, P>::pack_panels(const PackOffsets& offsets, const char* a, int64_t rows,
                                const PackSource& all, P* packed) const {
  const int64_t mr = kernels_.mr;
  if (rows <= mr) {
    pack_runs(kernels_.pack_rows, offsets.k0, op_.dtype_a, &Dim::a, packed, mr, rows, offsets.depth,
              all);
    return;
  }
  PackSource source = all;
  const int64_t steps = std::max<int64_t>(kSharedLines, kernels_.kPair * kernels_.depth_step);
  for (int64_t k = 0; k < offsets.depth; k += steps) {
    const int64_t depth = std::min(steps, offsets.depth - k);
    P* dst = packed + kernels_.packed_depth(k) * mr;
    source.k_offset = offsets.k_a + k;
    if (op_.s != nullptr) source.scale_k_offset = offsets.k_s + k;
    // The lines of the next panels, which no hardware fetches early.
    const char* next = a + (all.w_offset[0] + rows) * size_a_;
    for (int64_t i = k; i < k + depth; ++i) {
      __builtin_prefetch(next + offsets.k_a[i] * size_a_, 0, 2);
    }
    for (int64_t row = 0; row < rows; row += mr) {
      const int64_t width = std::min(mr, rows - row);
      source.w_offset = all.w_offset + row;
      source.scale_w_offset = all.scale_w_offset + row;
      kernels_.pack_rows(op_.dtype_a, dst, mr, width, depth, source);
      dst += mr * kernels_.packed_depth(offsets.depth);
    }
  }
}

// Packs one panel, or `depth` steps of it. Where several dimensions make up the depth, the steps
// along the innermost one are still fixed: its runs are packed one after the other.
template <class T, class P>
void Packing<T, P>::pack_runs(typename GemmKernels<T, P>::Pack pack, int64_t k0, Dtype dtype,
                              int64_t Dim::* stride, P* dst, int64_t panel, int64_t width,
                              int64_t depth, const PackSource& all) const {
  const bool uniform =
      all.k_step != kNoStep && (all.scale == nullptr || all.scale_k_step != kNoStep);
  if (uniform || op_.k.count < 2 || all.fold != Fold::kNone) {
    pack(dtype, dst, panel, width, depth, all);  // no copy of it: short panels would wait for it
    return;
  }
  PackSource source = all;
  const Dim& inner = op_.k[op_.k.count - 1];
  for (int64_t k = 0; k < depth;) {
    const int64_t run = std::min(depth - k, inner.size - (k0 + k) % inner.size);
    source.k_offset = all.k_offset + k;
    source.k_step = inner.*stride;
    if (source.scale != nullptr) {
      source.scale_k_offset = all.scale_k_offset + k;
      source.scale_k_step = inner.s;
    }
    pack(dtype, dst + kernels_.packed_depth(k) * panel, panel, width, run, source);
    k += run;
  }
}

template class Packing<float>;
template class Packing<double>;
template class Packing<Complex<float>>;
template class Packing<Complex<double>>;
template class Packing<float, BfPair>;

}  // namespace matcalc::cpu
