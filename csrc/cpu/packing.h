// The operands of a blocked product, copied into the panels that the tile reads: from any strides,
// any storage, with a second factor or as a folded matrix.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"
#include "isa/gemm_kernels.h"
#include "scratch.h"

namespace matcalc::cpu {

// Where the terms, columns and rows in hand lie in the operands. Lists of no entries are nullptr:
// what is read where it lies needs none.
struct PackOffsets {
  int64_t k0, depth;                          // a block of the depth, k0 ... k0 + depth
  int64_t *k_a, *k_s, *k_b, *k_b2, *k_index;  // [depth]
  int64_t *n_b, *n_b2, *n_index;              // [a group of columns]
  int64_t *m_a, *m_s;                         // [rows of A packed at a time]

  static size_t bytes(int64_t depth, int64_t cols, int64_t rows) {
    return 5 * Scratch::size_of<int64_t>(depth) + 3 * Scratch::size_of<int64_t>(cols) +
           2 * Scratch::size_of<int64_t>(rows);
  }
  void take(Scratch& scratch, int64_t depth, int64_t cols, int64_t rows);
};

// From one row, column or term of an operand to the next, kNoStep where that is not one number.
struct Steps {
  explicit Steps(const Contraction& op);
  int64_t m_a, k_a, k_s, k_b, k_b2, n_b, m_c, n_c;
};

template <class T, class P = T>
class Packing {
 public:
  Packing(const Contraction& op, const GemmKernels<T, P>& kernels, const Steps& steps);

  // The offsets of one group of columns, and of one block of depth.
  void load_cols(PackOffsets& offsets, int64_t n0, int64_t n1) const;
  void load_depth(PackOffsets& offsets, int64_t k0, int64_t k1) const;

  // Columns j0 ... j0 + cols of the group, a panel after the other; b is the item's B.
  void pack_b(const PackOffsets& offsets, const char* b, int64_t j0, int64_t cols, P* packed) const;
  // Rows i ... i + rows, a panel after the other, of the item's A, and S where there is one.
  // `sharing` panels, whose rows share lines of memory, are packed together.
  void pack_a(PackOffsets& offsets, const char* a, const char* s, int64_t i, int64_t rows,
              int64_t sharing, P* packed) const;

 private:
  using Dim = ContractionDim;
  void pack_panels(const PackOffsets& offsets, const char* a, int64_t rows, const PackSource& all,
                   P* packed) const;
  void pack_runs(typename GemmKernels<T, P>::Pack pack, int64_t k0, Dtype dtype,
                 int64_t Dim::* stride, P* dst, int64_t panel, int64_t width, int64_t depth,
                 const PackSource& all) const;

  const Contraction& op_;
  const GemmKernels<T, P>& kernels_;
  int64_t rows_, size_a_;
  const Steps steps_;
};

extern template class Packing<float>;
extern template class Packing<double>;
extern template class Packing<Complex<float>>;
extern template class Packing<Complex<double>>;
extern template class Packing<float, BfPair>;

}  // namespace matcalc::cpu
