// Batches of small matrices: the processor sees that memory is read in order within a matrix, but
// not where the next one begins, so that their items are fetched early.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "../kernels.h"

namespace matcalc::cpu {

constexpr int64_t kLine = 64;  // bytes

template <int kWrite, int kLocality = 3>  // 3: into every cache, 2: from L2 on
inline void fetch(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at, kWrite, kLocality);
}

// Bytes between the first and the last element of a matrix; 0 where they are more than `most`, or
// unknown.
inline int64_t small_span(int64_t rows, int64_t row, int64_t cols, int64_t col, int64_t size,
                          int64_t most = 4096) {
  if (row == kNoStep || col == kNoStep) return 0;
  const int64_t span = ((rows - 1) * std::abs(row) + (cols - 1) * std::abs(col) + 1) * size;
  return span <= most && row >= 0 && col >= 0 ? span : 0;
}

// What there is to fetch of an item, if the batch lies in no cache: 4096 products of matrices of
// 16 x 16 and more take half the time.
class Ahead {
 public:
  static constexpr int64_t kItems = 4;  // so many early

  Ahead() = default;
  // The bytes of each operand. The first lines are enough, and all of them more than can be on
  // their way at once: products of 16 x 16 take a third less with four lines, of 32 x 32 a quarter.
  Ahead(int64_t items, int64_t a, int64_t b, int64_t c) {
    constexpr int64_t kCached = 1 << 20, kFirst = 4 * kLine;
    if (items * (a + b + c) > kCached) {
      a_ = std::min(a, kFirst);
      b_ = std::min(b, kFirst);
      c_ = std::min(c, kFirst);
      bytes_ = a + b + c;
    }
  }
  int64_t bytes() const { return bytes_; }  // of an item, 0 where there is nothing to fetch
  void fetch_item(const char* a, const char* b, const char* c) const {
    fetch<0>(a, a_);
    fetch<0>(b, b_);
    fetch<1>(c, c_);
  }

 private:
  int64_t a_ = 0, b_ = 0, c_ = 0, bytes_ = 0;
};

// The operands of the next item, which come into L2 piece by piece while an item is computed: where
// the rows of a panel are apart, each line of it would be waited for.
class Upcoming {
 public:
  Upcoming() = default;
  Upcoming(const char* b, int64_t b_bytes, const char* a, int64_t a_bytes, int64_t pieces)
      : at_{b, a}, left_{b_bytes, a_bytes}, piece_((b_bytes + a_bytes) / pieces + kLine) {}
  void fetch_piece() {
    int64_t bytes = piece_;
    for (int i = 0; bytes > 0 && i < 2; ++i) {
      const int64_t some = std::min(bytes, left_[i]);
      fetch<0, 2>(at_[i], some);
      at_[i] += some;
      left_[i] -= some;
      bytes -= some;
    }
  }

 private:
  const char* at_[2] = {};
  int64_t left_[2] = {}, piece_ = 0;
};

}  // namespace matcalc::cpu
