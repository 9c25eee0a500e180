// How the tensor-core gemm brings a tile of an operand to shared memory: plain operands by
// asynchronous copies, everything else through registers.
#pragma once

#include "gemm.cuh"
#include "mma_maps.h"
#include "ptx.cuh"

namespace matcalc::cuda {

// A product as the kernel takes it.
struct MmaProblem {
  Gemm gemm;
  int64_t split_depth;  // k of one split, a multiple of the tile's
  int64_t split_c;      // from one split's partial sums to the next's, in numbers
  int32_t splits;
  uint32_t tiles_m, tiles_n;
  bool chunks_a, chunks_b;  // the general loader can load 16 bytes of the tile at a time
  bool chunks_c;            // so can the epilogue store four numbers (two of 8 bytes)
};

namespace {

// The two operands by one name.
template <Side kSide>
struct Operand;
template <>
struct Operand<Side::kA> {
  static __device__ const void* data(const Gemm& gemm) { return gemm.a; }
  static __device__ Dtype dtype(const Gemm& gemm) { return gemm.dtype_a; }
  static __device__ int64_t size(const Gemm& gemm) { return gemm.m; }
  static __device__ const Offsets& batch(const Gemm& gemm) { return gemm.batch_a; }
  static __device__ const Offsets& width(const Gemm& gemm) { return gemm.m_a; }
  static __device__ const Offsets& depth(const Gemm& gemm) { return gemm.k_a; }
  // The other operand of a product of two, or of a sum: S.
  static __device__ const void* data2(const Gemm& gemm) { return gemm.s; }
  static __device__ Dtype dtype2(const Gemm& gemm) { return gemm.dtype; }
  static __device__ const Offsets& batch2(const Gemm& gemm) { return gemm.batch_s; }
  static __device__ const Offsets& width2(const Gemm& gemm) { return gemm.m_s; }
  static __device__ const Offsets& depth2(const Gemm& gemm) { return gemm.k_s; }
  static __device__ Fold fold(const Gemm&) { return Fold::kNone; }
  static __device__ bool chunks(const MmaProblem& problem) { return problem.chunks_a; }
};
template <>
struct Operand<Side::kB> {
  static __device__ const void* data(const Gemm& gemm) { return gemm.b; }
  static __device__ Dtype dtype(const Gemm& gemm) { return gemm.dtype_b; }
  static __device__ int64_t size(const Gemm& gemm) { return gemm.n; }
  static __device__ const Offsets& batch(const Gemm& gemm) { return gemm.batch_b; }
  static __device__ const Offsets& width(const Gemm& gemm) { return gemm.n_b; }
  static __device__ const Offsets& depth(const Gemm& gemm) { return gemm.k_b; }
  // The square matrix of a fold, mirrored.
  static __device__ const void* data2(const Gemm& gemm) {
    return gemm.fold == Fold::kNone ? nullptr : gemm.b;
  }
  static __device__ Dtype dtype2(const Gemm& gemm) { return gemm.dtype_b; }
  static __device__ const Offsets& batch2(const Gemm& gemm) { return gemm.batch_b; }
  static __device__ const Offsets& width2(const Gemm& gemm) { return gemm.n_b2; }
  static __device__ const Offsets& depth2(const Gemm& gemm) { return gemm.k_b2; }
  static __device__ Fold fold(const Gemm& gemm) { return gemm.fold; }
  static __device__ bool chunks(const MmaProblem& problem) { return problem.chunks_b; }
};

__device__ inline int smaller(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

// ---------------------------------------------------------------------------------------------
// Plain operands: of the tile's type, one step along the width and one along the depth, one of them
// 1, every line aligned to 16 bytes. A thread copies the same chunk of several lines.
template <class T, Side kSide, Major kMajor, int kTileWidth, int kThreads>
class PlainLoader {
 public:
  using Map = TileMap<T, kMajor, kTileWidth>;

  __device__ PlainLoader(const MmaProblem& problem, int64_t item, int64_t w0, int64_t k0) {
    using Op = Operand<kSide>;
    const Gemm& gemm = problem.gemm;
    const Position first = Lanes::first(static_cast<int>(threadIdx.x));
    const int64_t w_step = Op::width(gemm).step(), k_step = Op::depth(gemm).step();
    source_ = static_cast<const T*>(Op::data(gemm)) + Op::batch(gemm).at(item) +
              (w0 + first.w) * w_step + (k0 + first.k) * k_step;
    line_step_ = Lanes::kLines * (kMajor == Major::kDepth ? w_step : k_step);
    target_ = Map::number(first.w, first.k) * static_cast<int>(sizeof(T));
    width_ = smaller(Op::size(gemm) - w0, kTileWidth) - first.w;
    depth_ = first.k;
  }

  // Starts the copy of the next tile, of which `depth` is inside the operand. Nothing outside is
  // read: it is zeros in shared memory.
  __device__ void load(unsigned char* tile, int depth) {
    const int depth_left = depth - depth_;
    const int along = kMajor == Major::kDepth ? depth_left : width_;
    const int lines = kMajor == Major::kDepth ? width_ : depth_left;
    int bytes = along * static_cast<int>(sizeof(T));
    bytes = bytes < 0 ? 0 : bytes > kChunkBytes ? kChunkBytes : bytes;
#pragma unroll
    for (int pass = 0; pass < Lanes::kPasses; ++pass) {
      const ByteStep step = byte_step<Map, kMajor>(Lanes::step(pass));
      copy_async(tile + (target_ ^ step.flip) + step.add, source_ + pass * line_step_,
                 pass * Lanes::kLines < lines ? bytes : 0);
    }
    source_ += kMajor == Major::kDepth ? Map::kDepth : Lanes::kPasses * line_step_;
  }

 private:
  using Lanes = ChunkLanes<Map, kMajor, kThreads>;

  const T* source_;    // this thread's first chunk of the next tile
  int64_t line_step_;  // from one of its chunks to the next
  int target_;         // the byte of the first in the tile
  int width_, depth_;  // the width from there on that is inside, and the depth before it
};

// ---------------------------------------------------------------------------------------------
// General operands: fetch() loads a tile to registers as it is stored, deposit() makes the tile's
// numbers of it and writes them to shared memory. Between the two the sums of the tile before are
// formed, while the loads are under way.

// A number in a register as it is stored, 2, 4 or 8 bytes.
template <class T>
struct WordOf {
  using Type = uint32_t;
};
template <>
struct WordOf<double> {
  using Type = double;
};

// Makes the numbers that words hold ready to be computed with.
template <int kCount>
__device__ inline void widen_words(double (&)[kCount], Dtype) {}
template <int kCount>
__device__ inline void widen_words(uint32_t (&words)[kCount], Dtype dtype) {
  if (dtype == Dtype::kBFloat16) {
#pragma unroll
    for (uint32_t& word : words) word <<= 16;
  } else if (dtype == Dtype::kFloat16) {
#pragma unroll
    for (uint32_t& word : words) word = bits_of(widen(F16{static_cast<uint16_t>(word)}));
  }
}

// Where the rows, columns and depths of the tile lie, in bytes, first in the operand and then in
// the other one: decoded once, not for every number. What is outside has the place of the first, so
// that every load is of something. Two tiles of depth: the one that is being fetched and the next.
template <int kTileWidth, int kDepth>
struct OffsetTables {
  int64_t width[2][kTileWidth];
  int64_t depth[2][2][kDepth];    // [tile % 2][operand][k]
  int64_t width_row[kTileWidth];  // of a folded matrix: the row of each column of B,
  int64_t depth_row[2][kDepth];   // and that of each k in the mirrored matrix
};

template <class T, Side kSide, Major kMajor, int kTileWidth, int kThreads>
class GeneralLoader {
 public:
  using Map = TileMap<T, kMajor, kTileWidth>;
  using Tables = OffsetTables<kTileWidth, Map::kDepth>;

  __device__ GeneralLoader(const MmaProblem& problem, Tables& tables, int64_t item, int64_t w0)
      : problem_(problem), tables_(tables) {
    const Gemm& gemm = problem.gemm;
    width_ = smaller(Op::size(gemm) - w0, kTileWidth);
    first_ = static_cast<const char*>(Op::data(gemm)) + Op::batch(gemm).at(item) * size();
    second_ = static_cast<const char*>(Op::data2(gemm));
    if (second_ != nullptr) second_ += Op::batch2(gemm).at(item) * size2();
    const int thread = static_cast<int>(threadIdx.x);
    number_ = Numbers::first(thread);
    chunk_ = Chunks::first(thread);
    if constexpr (kSide == Side::kB && kMajor == Major::kDepth && kTwo) {
      if (fold() != Fold::kNone) number_ = Numbers::first_in_square(thread);
    }
    if (thread >= kTileWidth) return;
    const int64_t w = w0 + (thread < width_ ? thread : 0);
    tables.width[0][thread] = Op::width(gemm).at(w) * size();
    if (second_ != nullptr) tables.width[1][thread] = Op::width2(gemm).at(w) * size2();
    if (fold() != Fold::kNone) tables.width_row[thread] = w % gemm.fold_n;
  }

  // Decodes the depths k0 ... k0 + depth of a tile. A and B do it with a warp each.
  __device__ void decode(int parity, int64_t k0, int depth) {
    const Gemm& gemm = problem_.gemm;
    const int thread = static_cast<int>(threadIdx.x) - (kSide == Side::kA ? 0 : 32);
    if (depth == 0 || thread < 0 || thread >= Map::kDepth) return;
    const int64_t k = k0 + (thread < depth ? thread : 0);
    tables_.depth[parity][0][thread] = Op::depth(gemm).at(k) * size();
    if (second_ != nullptr) tables_.depth[parity][1][thread] = Op::depth2(gemm).at(k) * size2();
    if (fold() != Fold::kNone) tables_.depth_row[parity][thread] = k % gemm.fold_k;
  }

  // Starts to load the tile whose depths lie in the tables' half `parity`.
  __device__ void fetch(int parity, int depth) {
    if (depth == 0) return;
    if (Op::chunks(problem_)) {
      if (sizeof(T) == 4 && size() == 2) {
        fetch_chunks<uint2>(parity);
      } else {
        fetch_chunks<uint4>(parity);
      }
    } else if (sizeof(T) != 8 && size() == 2) {
      fetch_numbers<uint16_t>(parity, 0, first_, words_);
    } else {
      fetch_numbers<Word>(parity, 0, first_, words_);
    }
    if constexpr (kTwo) {
      if (!two()) return;
      if (Op::chunks(problem_)) {
        fetch_scales(parity);
      } else if (sizeof(T) != 8 && size2() == 2) {
        fetch_numbers<uint16_t>(parity, 1, second_, words2_);
      } else {
        fetch_numbers<Word>(parity, 1, second_, words2_);
      }
    }
  }

  // The tile that was fetched, of which `depth` is inside the operand, to shared memory.
  __device__ void deposit(unsigned char* tile, int depth) {
    if (depth == 0) return;
    const bool chunks = Op::chunks(problem_);
    if constexpr (kTwo) {
      const Gemm& gemm = problem_.gemm;
      if (chunks && sizeof(T) == 4 && size() == 2) unpack();
      widen_words(words_, Op::dtype(gemm));
      if (two()) {
        if (chunks) spread();
        widen_words(words2_, Op::dtype2(gemm));
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) words_[i] = joined(words_[i], words2_[i]);
      }
    }
    if (chunks) {
      deposit_chunks(tile, depth);
    } else {
      deposit_numbers(tile, depth);
    }
  }

 private:
  using Op = Operand<kSide>;
  using Word = typename WordOf<T>::Type;
  using Numbers = NumberLanes<Map, kMajor, kThreads>;
  using Chunks = ChunkLanes<Map, kMajor, kThreads>;
  static constexpr int kNumbers = Numbers::kPasses, kChunks = Chunks::kPasses;
  static constexpr int kChunkWords = kChunkBytes / static_cast<int>(sizeof(Word));
  static_assert(kNumbers == kChunks * Map::kPerChunk);
  static_assert(kThreads >= kTileWidth && kThreads >= 64 && Map::kDepth <= 32);  // the tables

  // Bytes of a number as it is stored: in TF32 products 4, or 2 beside them.
  static __device__ int64_t size_of(Dtype dtype) {
    return sizeof(T) == 4 && dtype != Dtype::kFloat32 ? 2 : static_cast<int64_t>(sizeof(T));
  }
  __device__ int64_t size() const { return size_of(Op::dtype(problem_.gemm)); }
  __device__ int64_t size2() const { return size_of(Op::dtype2(problem_.gemm)); }
  __device__ Fold fold() const { return Op::fold(problem_.gemm); }
  // Numbers are made of two: A times S, or a matrix plus its transpose.
  static constexpr bool kTwo = sizeof(T) != 2;
  __device__ bool two() const { return kTwo && second_ != nullptr && fold() != Fold::kSymmetric; }

  static __device__ Position sum(Position a, Position b) { return {a.w + b.w, a.k + b.k}; }
  __device__ int64_t offset(int parity, int operand, Position at) const {
    return tables_.width[operand][at.w] + tables_.depth[parity][operand][at.k];
  }

  template <class Stored>
  __device__ void fetch_numbers(int parity, int operand, const char* from,
                                Word (&words)[kNumbers]) {
#pragma unroll
    for (int pass = 0; pass < kNumbers; ++pass) {
      const Position at = sum(number_, Numbers::step(pass));
      int which = operand;
      if (kSide == Side::kB && fold() == Fold::kSymmetric) {  // above the diagonal: mirrored
        which = tables_.width_row[at.w] < tables_.depth_row[parity][at.k] ? 1 : 0;
      }
      words[pass] = *reinterpret_cast<const Stored*>(from + offset(parity, which, at));
    }
  }

  // Chunks lie wholly inside the operand or wholly outside, and their numbers side by side.
  template <class Stored>
  __device__ void fetch_chunks(int parity) {
#pragma unroll
    for (int pass = 0; pass < kChunks; ++pass) {
      const char* from = first_ + offset(parity, 0, sum(chunk_, Chunks::step(pass)));
      Word* words = words_ + pass * kChunkWords;
      if constexpr (sizeof(T) == 8) {
        const double2 loaded = *reinterpret_cast<const double2*>(from);
        words[0] = loaded.x;
        words[1] = loaded.y;
      } else {
        const Stored loaded = *reinterpret_cast<const Stored*>(from);
        words[0] = loaded.x;
        words[1] = loaded.y;
        if constexpr (sizeof(Stored) == 16) {
          words[2] = loaded.z;
          words[3] = loaded.w;
        }
      }
    }
  }
  // The numbers of a chunk share one number of S.
  __device__ void fetch_scales(int parity) {
#pragma unroll
    for (int pass = 0; pass < kChunks; ++pass) {
      const char* from = second_ + offset(parity, 1, sum(chunk_, Chunks::step(pass)));
      Word& word = words2_[pass * kChunkWords];
      if (sizeof(T) == 4 && size2() == 2) {
        word = *reinterpret_cast<const uint16_t*>(from);
      } else {
        word = *reinterpret_cast<const Word*>(from);
      }
    }
  }

  // The four numbers of each chunk's first two words, one to a word.
  __device__ void unpack() {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < kNumbers; i += 4) {
        words_[i + 3] = words_[i + 1] >> 16;
        words_[i + 2] = words_[i + 1] & 0xffff;
        words_[i + 1] = words_[i] >> 16;
        words_[i] = words_[i] & 0xffff;
      }
    }
  }
  __device__ void spread() {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) words2_[i] = words2_[i / kChunkWords * kChunkWords];
  }

  static __device__ uint32_t joined(uint32_t word, uint32_t other) {
    return bits_of(kSide == Side::kA ? float_of(word) * float_of(other)
                                     : float_of(word) + float_of(other));
  }
  static __device__ double joined(double word, double other) {
    return kSide == Side::kA ? word * other : word + other;
  }

  // As the tile has it.
  static __device__ uint32_t finished(uint32_t word) {
    return sizeof(T) == 4 ? round_to_tf32(float_of(word)) : word;
  }
  static __device__ double finished(double word) { return word; }

  // What is outside becomes zeros, whatever was loaded in its place.
  __device__ void deposit_numbers(unsigned char* tile, int depth) const {
    using Stored = std::conditional_t<sizeof(T) == 2, uint16_t, Word>;
    const int width_left = width_ - number_.w, depth_left = depth - number_.k;
    const int first = Map::number(number_.w, number_.k) * static_cast<int>(sizeof(T));
#pragma unroll
    for (int pass = 0; pass < kNumbers; ++pass) {
      const Position step = Numbers::step(pass);
      const ByteStep bytes = byte_step<Map, kMajor>(step);
      const bool inside = step.w < width_left && step.k < depth_left;
      const Word word = inside ? words_[pass] : Word{};
      *reinterpret_cast<Stored*>(tile + (first ^ bytes.flip) + bytes.add) =
          static_cast<Stored>(finished(word));
    }
  }
  __device__ void deposit_chunks(unsigned char* tile, int depth) const {
    const int width_left = width_ - chunk_.w, depth_left = depth - chunk_.k;
    const int first = Map::number(chunk_.w, chunk_.k) * static_cast<int>(sizeof(T));
#pragma unroll
    for (int pass = 0; pass < kChunks; ++pass) {
      const Position step = Chunks::step(pass);
      const ByteStep bytes = byte_step<Map, kMajor>(step);
      const bool inside = step.w < width_left && step.k < depth_left;
      Word words[kChunkWords];
#pragma unroll
      for (int i = 0; i < kChunkWords; ++i) {
        words[i] = finished(inside ? words_[pass * kChunkWords + i] : Word{});
      }
      unsigned char* to = tile + (first ^ bytes.flip) + bytes.add;
      if constexpr (sizeof(T) == 8) {
        *reinterpret_cast<double2*>(to) = make_double2(words[0], words[1]);
      } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  const MmaProblem& problem_;
  Tables& tables_;
  const char *first_, *second_;
  int width_;
  Position number_, chunk_;  // of the first pass
  // As loaded. A chunk begins at every fourth word (second of 8 bytes).
  Word words_[kNumbers], words2_[kTwo ? kNumbers : 1];
};

}  // namespace
}  // namespace matcalc::cuda
