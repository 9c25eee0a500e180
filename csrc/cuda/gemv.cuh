// Matrix times vector. Device code; gemv.cu plans and launches it.
//
//   C[item, line] = bias[line] + scale * sum_p matrix[item, line, p] * vector[item, p]
//
// A dot is a matrix of one line, a sum a product with a vector of ones. Every element of the matrix
// is read once, so the kernels are made to keep many loads on their way, 4 to 8 of 16 bytes in each
// thread. Two ways to read, by where neighbouring elements lie:
//
//   rows      along p: a team of threads walks along one line, or along four that share the vector
//   columns   along the lines: a thread has a few lines of its own and walks down p
//
// Where alignment or strides forbid 16-byte loads, the same kernels read element by element. A sum
// may be cut into parts, which a second launch adds as a sum of columns or rows.
#pragma once

#include "level2.cuh"

namespace matcalc::cuda {

// The positions p are k_runs stretches of k_run, each of which both operands step through evenly.
struct Gemv {
  Dtype dtype;  // of the bias
  Dtype dtype_matrix, dtype_vector, dtype_c;
  const void* matrix;  // [items, lines, k_runs, k_run]
  const void* vector;  // [items, k_runs, k_run]; nullptr: 1 everywhere
  const void* bias;    // [lines], bias_step apart; nullptr: none
  void* c;             // [items, lines]
  int64_t items, lines;
  int64_t k_runs, k_run;
  Offsets batch_matrix, batch_vector, batch_c;
  Offsets line_matrix, line_c;
  Offsets runs_matrix, runs_vector;  // of stretches
  int64_t step_matrix, step_vector;  // within them
  int64_t bias_step;
  bool conj_vector, conj_sum;
  double scale;
};

// The most positions of one stretch that a thread's 32-bit counters walk through.
constexpr int64_t kMaxStretch = int64_t{1} << 30;

// Loads of a thread of the columns kernel that are on their way at a time.
constexpr int kColumnUnroll = 8;

struct GemvPlan {
  bool columns;
  bool packs;         // the matrix is read 16 bytes at a time
  bool packs_vector;  // so is the vector, by runs of as many elements
  bool packs_c;       // a thread's neighbouring lines are written as one
  int rows;           // lines that a team walks along at a time: 1 or 4
  int team;           // threads that share a unit of work, a power of two
  int across;         // columns: threads of a team side by side, a power of two up to 32
  int64_t groups;     // units of work of an item: groups of lines
  int64_t splits;     // parts that the sums are cut into
  int64_t depth;      // their length: positions, or stretches where there are several
  int64_t split_c;    // elements of C between parts
  int64_t units;      // groups x items x splits
};

namespace {

// A unit of work, of which each team of the grid has one.
struct Unit {
  int64_t split, item, group;
};

__device__ __forceinline__ int64_t unit_index(const GemvPlan& plan) {
  return static_cast<int64_t>(blockIdx.x) * (kLevel2Threads / plan.team) +
         static_cast<int>(threadIdx.x) / plan.team;
}

__device__ __forceinline__ Unit unit_of(const Gemv& gemv, const GemvPlan& plan, int64_t index) {
  Unit unit{0, index, 0};
  if (plan.groups > 1) {
    unit.item = index / plan.groups;
    unit.group = index - unit.item * plan.groups;
  }
  if (plan.splits > 1) {
    unit.split = unit.item / gemv.items;
    unit.item -= unit.split * gemv.items;
  }
  return unit;
}

// The part of the sum that a unit forms: of each stretch in [first, last) the positions
// [begin, begin + count).
struct Part {
  int64_t first, last, begin;
  int count;
};

__device__ __forceinline__ Part part_of(const Gemv& gemv, const GemvPlan& plan, int64_t split) {
  const int64_t begin = split * plan.depth;
  if (gemv.k_runs > 1) {
    return {begin, std::min(gemv.k_runs, begin + plan.depth), 0, static_cast<int>(gemv.k_run)};
  }
  return {0, 1, begin, static_cast<int>(std::min(gemv.k_run - begin, plan.depth))};
}

// A sum as it goes into C.
template <class Acc>
__device__ __forceinline__ Acc finished(const Gemv& gemv, int64_t line, Acc sum) {
  Acc value = scaled(conjugate_if(gemv.conj_sum, sum), gemv.scale);
  if (gemv.bias != nullptr) {
    with_storage<Acc>(gemv.dtype, [&](auto* type) {
      using T = StorageOf<decltype(type)>;
      value = add(value, widen(static_cast<const T*>(gemv.bias)[line * gemv.bias_step]));
    });
  }
  return value;
}

template <class Acc>
__device__ __forceinline__ void store_line(const Gemv& gemv, const GemvPlan& plan, const Unit& unit,
                                           int64_t line, Acc sum) {
  const Acc value = finished(gemv, line, sum);
  const int64_t offset =
      gemv.batch_c.at(unit.item) + gemv.line_c.at(line) + unit.split * plan.split_c;
  with_storage<Acc>(gemv.dtype_c, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    narrow(value, static_cast<T*>(gemv.c)[offset]);
  });
}

// Of neighbouring lines of one thread those that there are: as one run, where C takes runs.
template <class Acc, int kCount>
__device__ __forceinline__ void store_lines(const Gemv& gemv, const GemvPlan& plan,
                                            const Unit& unit, int64_t line,
                                            const Acc (&sums)[kCount]) {
  if (line >= gemv.lines) return;
  if (kCount > 1 && plan.packs_c) {
    const int64_t offset = gemv.batch_c.at(unit.item) + line + unit.split * plan.split_c;
    with_storage<Acc>(gemv.dtype_c, [&](auto* type) {
      using T = StorageOf<decltype(type)>;
      Run<T, kCount> run;
      run.clear();
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        T narrowed;
        narrow(finished(gemv, line + e, sums[e]), narrowed);
        run.set(e, narrowed);
      }
      run.store(static_cast<T*>(gemv.c) + offset);
    });
    return;
  }
#pragma unroll 1  // finding the place takes many instructions
  for (int e = 0; e < kCount && line + e < gemv.lines; ++e) {
    Acc sum = sums[0];
#pragma unroll
    for (int i = 1; i < kCount; ++i) {
      if (e == i) sum = sums[i];
    }
    store_line(gemv, plan, unit, line + e, sum);
  }
}

// Of kUnroll runs, `step` positions apart, those of which the first position is left; zeros for the
// others. A run lies within what is left. Of packs the positions are neighbours in memory.
template <bool kPacks, class T, int kPack, int kUnroll>
__device__ __forceinline__ void load_runs(const T* from, int64_t stride, int step, int left,
                                          Run<T, kPack> (&runs)[kUnroll]) {
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    runs[u].clear();
    if constexpr (kPacks) {
      if (left > u * step) runs[u].load(from + u * step);
    } else {
      if (left > u * step) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) runs[u].set(e, from[e * stride]);
      }
      from += step * stride;
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Rows.

// Adds to the sums what one thread of a team takes of `count` positions of one stretch: runs of
// kPack from position lane kPack on, team kPack apart. `vector`: nullptr for ones.
template <int kPack, class T, class X, int kRows>
__device__ __forceinline__ void add_rows(const Gemv& gemv, const GemvPlan& plan,
                                         const T* const (&rows)[kRows], const X* vector, int count,
                                         int lane, Accumulator<T> (&sums)[kRows]) {
  using Acc = Accumulator<T>;
  // 4 loads of 16 bytes for one row and 8 for four, beside those of the vector; of single elements
  // twice as many.
  constexpr bool kPacks = kPack == kFullPack<T>;
  constexpr int kUnroll = (kRows == 1 ? 4 : 2) * (kPacks ? 1 : 2);
  const int step = plan.team * kPack;
  for (int p = lane * kPack; p < count; p += kUnroll * step) {
    Run<T, kPack> runs[kRows][kUnroll];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const T* from = kPacks && kPack > 1 ? rows[r] + p : rows[r] + p * gemv.step_matrix;
      load_runs<(kPacks && kPack > 1)>(from, gemv.step_matrix, step, count - p, runs[r]);
    }
    if (vector == nullptr) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) sums[r] = add(sums[r], runs[r][u][e]);
        }
      }
    } else {
      Run<X, kPack> x[kUnroll];
      if (kPack > 1 && plan.packs_vector) {
        load_runs<true>(vector + p, 1, step, count - p, x);
      } else {
        load_runs<false>(vector + p * gemv.step_vector, gemv.step_vector, step, count - p, x);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const Acc entry = conjugate_if(gemv.conj_vector, x[u][e]);
#pragma unroll
          for (int r = 0; r < kRows; ++r) sums[r] = multiply_add(runs[r][u][e], entry, sums[r]);
        }
      }
    }
  }
}

// A team of plan.team threads, a part of a warp or the whole block, walks along kRows lines. T and
// X are the stored types of the matrix and the vector.
template <class T, class X, int kPack, int kRows>
__global__ void __launch_bounds__(kLevel2Threads, kRows == 1 && sizeof(X) <= sizeof(T) ? 3 : 2)
    gemv_rows_kernel(const __grid_constant__ Gemv gemv, const __grid_constant__ GemvPlan plan) {
  using Acc = Accumulator<T>;
  struct Shared {
    Acc sums[kLevel2Warps][kRows];
  };
  const int lane = static_cast<int>(threadIdx.x) & (plan.team - 1);
  // Teams without work do the last unit once more, for the shuffles, and do not store it.
  const int64_t index = unit_index(plan);
  const Unit unit = unit_of(gemv, plan, std::min(index, plan.units - 1));
  const Part part = part_of(gemv, plan, unit.split);
  const T* matrix = static_cast<const T*>(gemv.matrix) + gemv.batch_matrix.at(unit.item) +
                    part.begin * gemv.step_matrix;
  Acc sums[kRows];
  const T* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sums[r] = Acc{};
    // Of lines past the last, which are not stored either, the last stands in.
    rows[r] = matrix + gemv.line_matrix.at(std::min(unit.group * kRows + r, gemv.lines - 1));
  }
  const X* vector = static_cast<const X*>(gemv.vector);
  if (vector != nullptr) {
    vector += gemv.batch_vector.at(unit.item) + part.begin * gemv.step_vector;
  }
  // What is left of a run is added element by element.
  const int whole = part.count - part.count % kPack;
  for (int64_t stretch = part.first; stretch < part.last; ++stretch) {
    const int64_t offset = gemv.runs_matrix.at(stretch);
    const T* from[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) from[r] = rows[r] + offset;
    const X* x = vector == nullptr ? nullptr : vector + gemv.runs_vector.at(stretch);
    add_rows<kPack>(gemv, plan, from, x, whole, lane, sums);
    if (kPack > 1 && whole < part.count) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) from[r] += whole;
      if (x != nullptr) x += whole * gemv.step_vector;
      add_rows<1>(gemv, plan, from, x, part.count - whole, lane, sums);
    }
  }
  for (int with = std::min(plan.team, 32) / 2; with > 0; with /= 2) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] = add(sums[r], shuffle_xor(sums[r], with));
  }
  if (plan.team == kLevel2Threads) {
    Shared& shared = shared_memory<Shared>();
    if (lane % 32 == 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) shared.sums[lane / 32][r] = sums[r];
    }
    __syncthreads();
    if (lane < kRows) {
      sums[0] = shared.sums[0][lane];
      for (int w = 1; w < kLevel2Warps; ++w) sums[0] = add(sums[0], shared.sums[w][lane]);
    }
  } else if (plan.team < kRows) {
    if (index < plan.units && lane == 0) {
      store_lines(gemv, plan, unit, unit.group * kRows, sums);
    }
    return;
  } else {
#pragma unroll
    for (int r = 1; r < kRows; ++r) {
      if (lane == r) sums[0] = sums[r];
    }
  }
  const int64_t line = unit.group * kRows + lane;
  if (index < plan.units && lane < kRows && line < gemv.lines) {
    store_line(gemv, plan, unit, line, sums[0]);
  }
}

// ---------------------------------------------------------------------------------------------
// Columns.

// A team of a warp or of the whole block takes plan.across times kPack lines: each thread kPack
// neighbouring ones, at every (team / across)-th position along k.
template <class T, int kPack>
__global__ void __launch_bounds__(kLevel2Threads, 2)
    gemv_columns_kernel(const __grid_constant__ Gemv gemv, const __grid_constant__ GemvPlan plan) {
  using Acc = Accumulator<T>;
  struct Shared {
    Acc sums[kLevel2Warps][32 * kPack];
  };
  const int lane = static_cast<int>(threadIdx.x) & (plan.team - 1);
  const int across = lane & (plan.across - 1), down = lane / plan.across;
  const int step = plan.team / plan.across;
  const int64_t index = unit_index(plan);
  const Unit unit = unit_of(gemv, plan, std::min(index, plan.units - 1));
  const Part part = part_of(gemv, plan, unit.split);
  const int group_lines = plan.across * kPack;
  const int64_t line = unit.group * group_lines + across * kPack;
  const int count = line < gemv.lines ? part.count : 0;  // beyond the last: nothing to add up
  const T* matrix = static_cast<const T*>(gemv.matrix) + gemv.batch_matrix.at(unit.item) +
                    gemv.line_matrix.at(std::min(line, gemv.lines - 1)) +
                    (part.begin + down) * gemv.step_matrix;
  const int64_t vector = gemv.batch_vector.at(unit.item) + (part.begin + down) * gemv.step_vector;
  Acc sums[kPack];
#pragma unroll
  for (int e = 0; e < kPack; ++e) sums[e] = Acc{};
  for (int64_t stretch = part.first; stretch < part.last; ++stretch) {
    const T* from = matrix + gemv.runs_matrix.at(stretch);
    const int64_t x_offset = vector + gemv.runs_vector.at(stretch);
    for (int p = 0; p < count - down; p += kColumnUnroll * step) {
      Run<T, kPack> runs[kColumnUnroll];
#pragma unroll
      for (int u = 0; u < kColumnUnroll; ++u) {
        runs[u].clear();
        if (p + u * step < count - down) runs[u].load(from);
        from += step * gemv.step_matrix;
      }
      if (gemv.vector == nullptr) {
#pragma unroll
        for (int u = 0; u < kColumnUnroll; ++u) {
#pragma unroll
          for (int e = 0; e < kPack; ++e) sums[e] = add(sums[e], runs[u][e]);
        }
        continue;
      }
      Acc x[kColumnUnroll];
      with_storage<Acc>(gemv.dtype_vector, [&](auto* type) {
        using X = StorageOf<decltype(type)>;
        Run<X, 1> entries[kColumnUnroll];
        load_runs<false>(static_cast<const X*>(gemv.vector) + x_offset + p * gemv.step_vector,
                         gemv.step_vector, step, count - down - p, entries);
#pragma unroll
        for (int u = 0; u < kColumnUnroll; ++u) {
          x[u] = conjugate_if(gemv.conj_vector, entries[u][0]);
        }
      });
#pragma unroll
      for (int u = 0; u < kColumnUnroll; ++u) {
#pragma unroll
        for (int e = 0; e < kPack; ++e) sums[e] = multiply_add(runs[u][e], x[u], sums[e]);
      }
    }
  }
  for (int with = 16; with >= plan.across; with /= 2) {
#pragma unroll
    for (int e = 0; e < kPack; ++e) sums[e] = add(sums[e], shuffle_xor(sums[e], with));
  }
  if (plan.team == kLevel2Threads) {
    Shared& shared = shared_memory<Shared>();
    if (lane % 32 < plan.across) {
#pragma unroll
      for (int e = 0; e < kPack; ++e) shared.sums[lane / 32][across * kPack + e] = sums[e];
    }
    __syncthreads();
    // One line for each thread: there are 256 at the most.
    const int64_t mine = unit.group * group_lines + lane;
    if (lane < group_lines && mine < gemv.lines) {
      Acc sum = shared.sums[0][lane];
      for (int w = 1; w < kLevel2Warps; ++w) sum = add(sum, shared.sums[w][lane]);
      store_line(gemv, plan, unit, mine, sum);
    }
  } else if (index < plan.units && lane < plan.across) {
    store_lines(gemv, plan, unit, line, sums);
  }
}

}  // namespace
}  // namespace matcalc::cuda
