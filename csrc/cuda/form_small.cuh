// Forms of matrices of up to 32 x 32. Device code; form.cu plans and launches it.
//
// A matrix is walked by a power of two of lanes, one for each of its columns, and as many matrices
// as fit share a warp. Lane i also holds y_i and, at the end, p_i: nothing goes through shared
// memory, and no thread waits for another warp.
#pragma once

#include "form.cuh"

namespace matcalc::cuda::forms {

constexpr int kSmallSize = 32;      // rows and columns
constexpr int kSmallThreads = 128;  // 16 blocks fill a multiprocessor, and small ones spread evenly

// kRows rows are on their way at a time: 8 of 32 floats are 1 KB for each warp, so that the 40 and
// more warps of a multiprocessor keep its share of the memory busy. `lanes` is at least kRows, and
// no less than the rows and the columns.
template <class T, int kRows>
__global__ void __launch_bounds__(kSmallThreads)
    form_small(const __grid_constant__ Walk walk, const __grid_constant__ Outer outer,
               bool by_columns, int lanes, int64_t first_item) {
  using Acc = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t wanted = first_item +
                         static_cast<int64_t>(blockIdx.x) * (static_cast<int>(blockDim.x) / lanes) +
                         thread / lanes;
  // Lanes without an item work on the last one, for those that they share the shuffles with.
  const bool real = wanted < walk.items;
  const int64_t item = real ? wanted : walk.items - 1;
  const int rows = static_cast<int>(walk.rows), cols = static_cast<int>(walk.cols);
  const bool in_rows = lane < rows, in_cols = lane < cols;

  Acc y{}, x{};
  if (in_rows) y = load_entry<T>(walk.y, offset_at(walk.y.batch, item), lane);
  if (walk.quadratic) {
    x = y;
  } else if (in_cols) {
    x = load_entry<T>(walk.x, offset_at(walk.x.batch, item), lane);
  }

  Acc p{}, q{};
  if (walk.reads_matrix()) {
    const T* column =
        static_cast<const T*>(walk.a) + offset_at(walk.batch_a, item) + lane * walk.col;
    const Triangle triangle = walk.triangle;
    const bool products = walk.wants_products() || triangle != Triangle::kNone;
    // Above zero beyond the triangle, zero on the diagonal.
    const auto beyond = [&](int row) {
      return triangle == Triangle::kNone    ? -1
             : triangle == Triangle::kLower ? lane - row
                                            : row - lane;
    };
    for (int first = 0; first < rows; first += kRows) {
      T raw[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int row = first + r;
        raw[r] = T{};
        if (row < rows && in_cols && beyond(row) <= 0) raw[r] = column[row * walk.row];
      }
      Acc parts[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Acc y_row = shuffle_from(y, first + r, lanes);
        const int side = beyond(first + r);
        Acc a = widen(raw[r]);
        if (side == 0) a = scaled(a, 0.5);
        parts[r] = Acc{};
        if (side <= 0) {  // beyond, zero times an infinity must not be added
          parts[r] = multiply(a, x);
          q = multiply_add(a, y_row, q);
        }
      }
      if (products) {
        const Acc sum = sum_of_rows(parts, lanes);
        const Acc mine = shuffle_from(sum, lane % kRows * (lanes / kRows), lanes);
        if (lane >= first && lane < first + kRows) p = mine;
      }
    }
  }

  const Factor<T> factor(walk.g, offset_at(walk.g.batch, item));
  if (walk.alpha.data != nullptr) {
    Acc value{};
    if (in_cols) value = multiply(x, walk.triangle == Triangle::kNone ? q : add(p, q));
    value = sum_of_lanes(value, lanes);
    if (real && lane == 0) {
      narrow(value, static_cast<T*>(walk.alpha.data)[offset_at(walk.alpha.batch, item)]);
    }
  }
  if (real && walk.dy.data != nullptr && in_rows) {
    store_gradient<T>(walk, walk.dy, offset_at(walk.dy.batch, item), lane, factor, p);
  }
  if (real && walk.dx.data != nullptr && in_cols) {
    store_gradient<T>(walk, walk.dx, offset_at(walk.dx.batch, item), lane, factor,
                      walk.quadratic ? add(p, q) : q);
  }

  if (outer.da == nullptr) return;
  const Acc down = factor.times(conjugate_if(true, by_columns ? x : y));
  const Acc across = conjugate_if(true, by_columns ? y : x);
  const int outer_rows = static_cast<int>(outer.rows), outer_cols = static_cast<int>(outer.cols);
  T* da = static_cast<T*>(outer.da) + offset_at(outer.batch_da, item) + lane;
#pragma unroll 4
  for (int row = 0; row < outer_rows; ++row) {
    const Acc value = multiply(shuffle_from(down, row, lanes), across);
    if (real && lane < outer_cols) narrow(value, da[row * outer_cols]);
  }
}

}  // namespace matcalc::cuda::forms
