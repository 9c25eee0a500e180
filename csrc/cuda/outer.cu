// Outer products, scaled rows, fills: every element of C is one product, and writing C is the cost.
//
//   C[item, row, col] = bias + scale * A S B    or the bias alone, where there is no term at all
//
// C's contiguous direction is `col`: the columns of the product, its rows, or its items. Each
// factor runs along rows or along columns. A thread writes a few packs of 16 bytes of one row.
#include "launch.cuh"
#include "level2.cuh"

namespace matcalc::cuda {
namespace {

struct Factor {
  const void* data;  // nullptr: none
  Dtype dtype;
  bool conj;
  bool along_cols;  // else along rows
  bool packs;       // along columns, in runs that can be loaded as one
  Offsets batch;    // of items
  Offsets own;      // of rows, or of stretches of columns
  int64_t step;     // from column to column
};

// The columns are `stretches` of `cols`, each of which all operands step through evenly.
struct Outer {
  Dtype dtype, dtype_c;
  bool empty;         // a sum without a term: the factors are not read
  Factor factors[3];  // A, S, B
  // Of `dtype`, by these steps along rows and columns; nullptr: none. A bias runs along a dimension
  // of C's own: where that is columns, they are one stretch.
  const void* bias;
  int64_t bias_row, bias_col;
  void* c;
  int64_t items, rows, stretches, cols;
  Offsets batch_c, row_c, stretch_c;
  int64_t step_c;
  double scale;
};

// 256 threads as `across` side by side, a power of two up to 32, times lines: a line is a stretch
// of columns of a row.
struct OuterPlan {
  int across;
  int64_t lines;
  int64_t chunks;  // of a line: as much as a block's threads write at a time
  int64_t blocks;  // chunks x groups of lines
};

// Packs that a thread writes: their numbers, widened, take 16 registers, and those of the factor
// that is multiplied in another 16.
template <class T>
inline constexpr int kAcross = sizeof(T) == 2 ? 2 : 4;

// A thread's place in a line: packs at col + u step.
struct LinePlace {
  int64_t item, row, stretch;
  int64_t col, step;
};

template <class Acc, int kPack, int kCount>
__device__ __forceinline__ void load_factor(const Outer& outer, const Factor& factor,
                                            const LinePlace& place, Acc (&values)[kCount][kPack]) {
  with_storage<Acc>(factor.dtype, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    const T* data = static_cast<const T*>(factor.data) + factor.batch.at(place.item) +
                    factor.own.at(factor.along_cols ? place.stretch : place.row);
    if (!factor.along_cols) {
      const Acc value = conjugate_if(factor.conj, widen(*data));
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) values[u][e] = value;
      }
      return;
    }
    Run<T, kPack> runs[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int64_t col = place.col + u * place.step;
      runs[u].clear();
      if (kPack > 1 && factor.packs && col + kPack <= outer.cols) {
        runs[u].load(data + col);
      } else {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          if (col + e < outer.cols) runs[u].set(e, data[(col + e) * factor.step]);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) values[u][e] = conjugate_if(factor.conj, runs[u][e]);
    }
  });
}

template <class Acc>
__device__ __forceinline__ Acc load_bias(const Outer& outer, int64_t row, int64_t col) {
  Acc value{};
  with_storage<Acc>(outer.dtype, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    value = widen(static_cast<const T*>(outer.bias)[row * outer.bias_row + col * outer.bias_col]);
  });
  return value;
}

template <class T, int kPack>
__global__ void __launch_bounds__(kLevel2Threads, 4)
    outer_kernel(const __grid_constant__ Outer outer, const __grid_constant__ OuterPlan plan) {
  using Acc = Accumulator<T>;
  constexpr int kCount = kAcross<T>;
  const int across = static_cast<int>(threadIdx.x) & (plan.across - 1);
  const int down = static_cast<int>(threadIdx.x) / plan.across;
  const int64_t lines_per_block = kLevel2Threads / plan.across;
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    const int64_t group = block / plan.chunks;
    const int64_t line = group * lines_per_block + down;
    if (line >= plan.lines) continue;
    LinePlace place{line, 0, 0, 0, static_cast<int64_t>(plan.across) * kPack};
    if (outer.stretches > 1) {
      place.item = line / outer.stretches;
      place.stretch = line - place.item * outer.stretches;
    }
    if (outer.rows > 1) {
      const int64_t item = place.item / outer.rows;
      place.row = place.item - item * outer.rows;
      place.item = item;
    }
    place.col = (block - group * plan.chunks) * kCount * place.step + across * kPack;

    Acc values[kCount][kPack];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) values[u][e] = outer.empty ? Acc{} : one<Acc>();
    }
    bool first = true;
#pragma unroll
    for (int f = 0; f < 3; ++f) {
      const Factor& factor = outer.factors[f];
      if (outer.empty || factor.data == nullptr) continue;
      if (first) {  // as it is: a complex infinity times one would be another number
        load_factor(outer, factor, place, values);
        first = false;
      } else {
        Acc more[kCount][kPack];
        load_factor(outer, factor, place, more);
#pragma unroll
        for (int u = 0; u < kCount; ++u) {
#pragma unroll
          for (int e = 0; e < kPack; ++e) values[u][e] = multiply(values[u][e], more[u][e]);
        }
      }
    }
    T* c = static_cast<T*>(outer.c) + outer.batch_c.at(place.item) + outer.row_c.at(place.row) +
           outer.stretch_c.at(place.stretch);
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int64_t col = place.col + u * place.step;
      Run<T, kPack> out;
      out.clear();
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        Acc value = scaled(values[u][e], outer.scale);
        if (outer.bias != nullptr && col + e < outer.cols) {
          value = add(value, load_bias<Acc>(outer, place.row, col + e));
        }
        T narrowed;
        narrow(value, narrowed);
        out.set(e, narrowed);
      }
      if (kPack > 1 && col + kPack <= outer.cols) {
        out.store(c + col);
      } else {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          if (col + e < outer.cols) c[(col + e) * outer.step_c] = out.get(e);
        }
      }
    }
  }
}

enum class Cols { kN, kM, kItems };

Cols choose_cols(const Gemm& gemm) {
  if (gemm.m > 1 && (gemm.n == 1 || (gemm.n_c.step() != 1 && gemm.m_c.step() == 1))) {
    return Cols::kM;
  }
  return gemm.n > 1 ? Cols::kN : Cols::kItems;
}

// False where some operand's columns are all over the place.
bool make_outer(const Gemm& gemm, Outer& outer) {
  outer = {};
  const Cols cols = choose_cols(gemm);
  outer.dtype = gemm.dtype;
  outer.dtype_c = gemm.dtype_c;
  outer.empty = gemm.k == 0;
  outer.bias = gemm.bias;
  outer.c = gemm.c;
  outer.scale = gemm.scale;
  Factor &a = outer.factors[0], &s = outer.factors[1], &b = outer.factors[2];
  a = {gemm.a, gemm.dtype_a, gemm.conj_a, cols == Cols::kM, false, gemm.batch_a, gemm.m_a, 0};
  s = {gemm.s, gemm.dtype, gemm.conj_s, cols == Cols::kM, false, gemm.batch_s, gemm.m_s, 0};
  b = {gemm.b, gemm.dtype_b, gemm.conj_b, cols == Cols::kN, false, gemm.batch_b, gemm.n_b, 0};
  outer.items = gemm.items;
  outer.batch_c = gemm.batch_c;
  outer.rows = cols == Cols::kM ? gemm.n : gemm.m;
  outer.cols = cols == Cols::kM ? gemm.m : gemm.n;
  outer.row_c = cols == Cols::kM ? gemm.n_c : gemm.m_c;
  Offsets col_c = cols == Cols::kM ? gemm.m_c : gemm.n_c;
  const bool bias_on_cols = gemm.bias_on_rows == (cols == Cols::kM);
  (bias_on_cols ? outer.bias_col : outer.bias_row) = gemm.bias_stride;
  if (cols == Cols::kItems) {  // one element for each item
    outer.cols = outer.items;
    outer.items = 1;
    std::swap(col_c, outer.batch_c);
    outer.bias_col = 0;
    for (Factor& factor : outer.factors) {
      factor.along_cols = true;
      std::swap(factor.own, factor.batch);
    }
  }
  int64_t even = even_positions(outer.cols, {&col_c});
  for (const Factor& factor : outer.factors) {
    if (outer.empty || factor.data == nullptr || !factor.along_cols) continue;
    even = std::min(even, even_positions(outer.cols, {&factor.own}));
  }
  if (even == 0) return false;
  outer.stretches = outer.cols / even;
  outer.cols = even;
  outer.stretch_c = stretches_of(col_c, even);
  outer.step_c = innermost_step(col_c);
  for (Factor& factor : outer.factors) {
    if (!factor.along_cols) continue;
    factor.step = innermost_step(factor.own);
    factor.own = stretches_of(factor.own, even);
  }
  return true;
}

template <class T, int kPack>
void start(const char* name, const Outer& outer, const Device& device) {
  OuterPlan plan;
  const int64_t packs = ceil_div(outer.cols, kPack);
  plan.across = lanes_for(packs, 1, 32);
  plan.lines = outer.items * outer.rows * outer.stretches;
  plan.chunks = ceil_div(packs, static_cast<int64_t>(plan.across) * kAcross<T>);
  plan.blocks = plan.chunks * ceil_div(plan.lines, kLevel2Threads / plan.across);
  launch(name, outer_kernel<T, kPack>, std::min(plan.blocks, kMaxGrid), kLevel2Threads, 0, device,
         outer, plan);
}

template <class T>
void run_as(Outer& outer, const Device& device) {
  constexpr int kPack = kFullPack<T>;
  for (Factor& factor : outer.factors) {
    factor.packs = factor.data != nullptr && factor.along_cols && factor.step == 1 &&
                   takes_runs(factor.data, factor.dtype, kPack, {&factor.batch, &factor.own});
  }
  const bool packs =
      outer.step_c == 1 &&
      takes_runs(outer.c, outer.dtype_c, kPack, {&outer.batch_c, &outer.row_c, &outer.stretch_c});
  if (packs) {
    start<T, kPack>("outer", outer, device);
  } else {
    start<T, 1>("outer_by_element", outer, device);
  }
}

}  // namespace

bool run_outer(const Gemm& gemm, const Device& device) {
  Outer outer;
  if (!make_outer(gemm, outer)) return false;
  with_dtype(gemm.dtype_c, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    if constexpr (!std::is_integral_v<T>) run_as<T>(outer, device);
  });
  return true;
}

}  // namespace matcalc::cuda
