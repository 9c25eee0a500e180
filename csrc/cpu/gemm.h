// One contraction made ready to be computed in parts: compute() forms any block of rows and columns
// of any batch item, on the calling thread.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "ahead.h"
#include "isa/gemm_kernels.h"
#include "packing.h"

namespace matcalc::cpu {

// Those of the instruction set in use.
template <class T>
const GemmKernels<T>& gemm_kernels();

// T is the accumulator, a real or complex number; P an element of the packed operands: T itself, or
// a BfPair, two bfloat16 numbers that follow each other along the depth.
template <class T, class P = T>
class Product {
 public:
  // bias_on_rows: op is a transposed product, whose bias runs along m.
  Product(const Contraction& op, const GemmKernels<T, P>& kernels, bool bias_on_rows);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t depth() const { return depth_; }
  int64_t tile_rows() const { return kernels_.mr; }
  int64_t tile_cols() const { return kernels_.nr; }

  void compute(int64_t item, int64_t m0, int64_t m1, int64_t n0, int64_t n1) const;
  // Whole items.
  void compute_items(int64_t begin, int64_t end) const;

 private:
  struct Item {  // the operands of one batch item
    const char *a, *s, *b;
    char* c;
  };
  struct Base {  // what a panel's sums are added to, and the steps to its next row and tile
    const T* first;
    int64_t row_step, panel_step;
  };
  struct Block;  // one group of columns, a block of it, and their working memory

  Item operands(int64_t item) const;
  bool a_readable_in_place() const;
  bool reads_a_in_place() const;
  bool reads_b_in_place(int64_t rows, int64_t cols) const;
  void plan_fetching();
  Block plan(int64_t rows, int64_t cols) const;
  void reserve(Block& block, int64_t rows, int64_t cols) const;
  void compute_blocks(Block& block, const Item& item, int64_t m0, int64_t m1, int64_t n0,
                      int64_t n1) const;
  void compute_panels(Block& block, const Item& item, int64_t i0, int64_t i1) const;
  Base bias_of(int64_t i, int64_t rows, const Block& block) const;
  void load_b(Block& block, const Item& item, bool first_rows) const;
  void store(const Item& item, int64_t m0, int64_t m1, int64_t j0, int64_t cols,
             const Block& block) const;

  // Whether a panel of so many rows of A is read where it lies.
  bool in_place(int64_t rows) const {
    return a_in_place_ && (!kernels_.row_tiles || rows % tile_rows() == 0);
  }
  static constexpr int64_t kPair = GemmKernels<T, P>::kPair;
  // Up to a third more than a block is one block too: what C costs twice, n = 512 pays once (1 %).
  int64_t depth_block() const {
    const int64_t block = kernels_.kc * kPair;
    return depth_ > block && depth_ <= block / 3 * 4 ? depth_ : block;
  }

  const Contraction& op_;
  const GemmKernels<T, P>& kernels_;
  const Steps steps_;
  const Packing<T, P> packing_;
  const bool bias_on_rows_;
  const typename GemmKernels<T, P>::Tile tile_;
  int64_t rows_, cols_, depth_;
  int64_t size_a_, size_b_, size_c_, size_;  // bytes of an element; size_: of S and bias
  bool a_in_place_, b_readable_in_place_, c_in_place_;
  Ahead ahead_;
  int64_t upcoming_a_ = 0, upcoming_b_ = 0;  // bytes of the next item's operands to fetch
};

extern template class Product<float>;
extern template class Product<double>;
extern template class Product<Complex<float>>;
extern template class Product<Complex<double>>;
extern template class Product<float, BfPair>;

}  // namespace matcalc::cpu
