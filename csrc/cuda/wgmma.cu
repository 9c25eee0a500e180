// Which products the warpgroup gemm takes, by which tile, and in how many parts of the depth.
#include "wgmma.cuh"

namespace matcalc::cuda {
namespace {

// Coordinates are 32-bit numbers with a sign, up to a tile past the end.
constexpr int64_t kMaxSize = INT32_MAX - 256;
constexpr uint64_t kMaxStride = uint64_t{1} << 40;  // bytes, of a tensor map
constexpr int64_t kAlignment = 16;                  // bytes, of its address and strides

// Half a tile; mma has smaller ones.
constexpr int64_t kMinSize = 64;

// What a stage of the large tile costs and what one of the small tile does, of half as many
// multiplications: the small tile reads more of A and B for each.
constexpr int64_t kLargeCost = 8, kSmallCost = 5;

// A split has at least 1024 of the depth, about 5 microseconds of work: what a split saves must be
// more than what writing and adding the partial sums costs, a launch among it.
constexpr int64_t kMinSplitStages = 16;

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kAlignment == 0; }

// A stride as a tensor map can have it.
bool valid_stride(int64_t step, int64_t size) {
  return step > 0 && step * size % kAlignment == 0 &&
         static_cast<uint64_t>(step) < kMaxStride / static_cast<uint64_t>(size);
}

// The dimensions that the batch is made of, the outermost first: those of the list of batch
// dimensions, and of the rows and columns all but the innermost ones.
struct BatchDim {
  int64_t size, a, b, c;  // strides in the operands
};
struct Batch {
  BatchDim dims[kBatchDims];
  int count = 0;

  bool push(const BatchDim& dim) {
    if (count == kBatchDims) return false;
    dims[count++] = dim;
    return true;
  }
  int64_t items() const {
    int64_t product = 1;
    for (int d = 0; d < count; ++d) product *= dims[d].size;
    return product;
  }
};

// Positions that lie in two or three operands, each with dimensions of its own: the common ones, in
// which every operand has strides. The outermost is last.
template <int kOperands>
struct CommonDims {
  static constexpr int kMax = kOperands * Offsets::kDims;
  int count = 0;
  int64_t size[kMax], stride[kOperands][kMax];

  // False where there are none: a table of positions, or sizes that do not divide each other.
  bool find(const Offsets* const (&operands)[kOperands]) {
    int dim[kOperands];        // of each operand, the one that is being divided
    int64_t inner[kOperands];  // and by how much it has been
    for (int o = 0; o < kOperands; ++o) {
      if (operands[o]->table != nullptr) return false;
      dim[o] = operands[o]->count - 1;
      inner[o] = 1;
    }
    for (int64_t rest = operands[0]->numel; rest > 1; rest /= size[count++]) {
      int64_t smallest = rest;
      for (int o = 0; o < kOperands; ++o) {
        smallest = std::min(smallest, operands[o]->size[dim[o]] / inner[o]);
      }
      size[count] = smallest;
      for (int o = 0; o < kOperands; ++o) {
        const int64_t left = operands[o]->size[dim[o]] / inner[o];
        if (left % smallest != 0) return false;
        stride[o][count] = operands[o]->stride[dim[o]] * inner[o];
        inner[o] *= smallest;
        if (left == smallest) {
          --dim[o];
          inner[o] = 1;
        }
      }
    }
    return true;
  }
};

// A product as it is computed: of the rows and columns only the innermost dimension, each with one
// step.
struct Product {
  Batch batch;
  int64_t m, n, k;
  int64_t m_a, k_a, n_b, k_b, m_c, n_c;  // steps
};

bool describe(const Gemm& gemm, Product* product) {
  CommonDims<3> batch;
  CommonDims<2> rows, cols;
  if (!batch.find({&gemm.batch_a, &gemm.batch_b, &gemm.batch_c})) return false;
  if (!rows.find({&gemm.m_a, &gemm.m_c}) || !cols.find({&gemm.n_b, &gemm.n_c})) return false;
  if (rows.count == 0 || cols.count == 0) return false;
  for (int d = batch.count - 1; d >= 0; --d) {
    const auto& stride = batch.stride;
    if (!product->batch.push({batch.size[d], stride[0][d], stride[1][d], stride[2][d]})) {
      return false;
    }
  }
  for (int d = rows.count - 1; d > 0; --d) {
    if (!product->batch.push({rows.size[d], rows.stride[0][d], 0, rows.stride[1][d]})) return false;
  }
  for (int d = cols.count - 1; d > 0; --d) {
    if (!product->batch.push({cols.size[d], 0, cols.stride[0][d], cols.stride[1][d]})) return false;
  }
  product->m = rows.size[0];
  product->n = cols.size[0];
  product->k = gemm.k;
  product->m_a = rows.stride[0][0];
  product->n_b = cols.stride[0][0];
  product->m_c = rows.stride[1][0];
  product->n_c = cols.stride[1][0];
  product->k_a = gemm.k_a.step();
  product->k_b = gemm.k_b.step();
  return true;
}

// The batch dimensions of a map; false where it cannot have the strides.
bool map_batch(const Batch& batch, int64_t BatchDim::* stride, int64_t bytes, TensorMapShape* shape,
               WgmmaBatch* coordinates) {
  for (int d = 0; d < kBatchDims; ++d) {
    const bool exists = d < batch.count;
    const BatchDim dim = exists ? batch.dims[batch.count - 1 - d] : BatchDim{1, 0, 0, 0};
    const bool runs = dim.*stride != 0;
    if (runs && !valid_stride(dim.*stride, bytes)) return false;
    shape->size[2 + d] = runs ? static_cast<uint64_t>(dim.size) : 1;
    // Where there is only one coordinate nothing reads the stride, but it must be a valid one: that
    // of an array without gaps.
    const uint64_t gapless = shape->stride[d] * shape->size[1 + d];
    shape->stride[1 + d] = runs                   ? static_cast<uint64_t>(dim.*stride * bytes)
                           : gapless < kMaxStride ? gapless
                                                  : shape->stride[d];
    coordinates->steps[d] = runs ? 1 : 0;
    if (d < 2) coordinates->size[d] = static_cast<uint32_t>(dim.size);
  }
  return true;
}

// An operand, width x depth.
struct Operand {
  TensorMapShape shape;  // without the box, whose lines depend on the tile
  WgmmaBatch batch;
  Major major;
};

bool describe_operand(const void* data, Dtype dtype, int64_t width, int64_t depth, int64_t w_step,
                      int64_t k_step, const Batch& batch, int64_t BatchDim::* stride,
                      Operand* operand) {
  constexpr int64_t kBytes = 2;
  // Lines that overlap are not what a map is documented for.
  const auto lines = [](int64_t step, int64_t size) {
    return step >= size && valid_stride(step, kBytes);
  };
  if (!aligned(data)) return false;
  if (k_step == 1 && lines(w_step, depth)) {
    operand->major = Major::kDepth;
  } else if (w_step == 1 && lines(k_step, width)) {
    operand->major = Major::kWidth;
  } else {
    return false;
  }
  const bool along_depth = operand->major == Major::kDepth;
  TensorMapShape& shape = operand->shape;
  shape = {};
  shape.dtype = dtype;
  shape.data = data;
  shape.size[0] = static_cast<uint64_t>(along_depth ? depth : width);
  shape.size[1] = static_cast<uint64_t>(along_depth ? width : depth);
  shape.stride[0] = static_cast<uint64_t>((along_depth ? w_step : k_step) * kBytes);
  return map_batch(batch, stride, kBytes, &shape, &operand->batch);
}

bool encode(const Operand& operand, int tile_width, hopper::TensorMap* map) {
  TensorMapShape shape = operand.shape;
  shape.box[0] = kSwizzleLine / 2;
  shape.box[1] = operand.major == Major::kDepth ? tile_width : kStageDepth;
  return hopper::encode_tensor_map(shape, map);
}

// An m x n output with these steps, and the batch's strides c. Where the copy engine cannot write
// it, threads do.
WgmmaOutput describe_output(void* data, Dtype dtype, int64_t m, int64_t n, int64_t row_step,
                            int64_t col_step, const Batch& batch) {
  const int64_t bytes = dtype_size(dtype);
  WgmmaOutput out{};
  out.is_float = dtype == Dtype::kFloat32;
  out.data = data;
  out.row_step = row_step;
  out.col_step = col_step;
  out.positions.numel = batch.items();
  out.positions.fits32 = true;
  out.positions.count = batch.count;
  for (int d = 0; d < batch.count; ++d) {
    out.positions.size[d] = batch.dims[d].size;
    out.positions.stride[d] = batch.dims[d].c;
  }
  TensorMapShape shape{};
  shape.dtype = dtype;
  shape.data = data;
  shape.size[0] = static_cast<uint64_t>(n);
  shape.size[1] = static_cast<uint64_t>(m);
  shape.stride[0] = static_cast<uint64_t>(row_step * bytes);
  shape.box[0] = static_cast<uint32_t>(kSwizzleLine / bytes);
  shape.box[1] = kWgmmaRows;
  out.copies = aligned(data) && col_step == 1 && row_step >= n && valid_stride(row_step, bytes) &&
               map_batch(batch, &BatchDim::c, bytes, &shape, &out.batch) &&
               hopper::encode_tensor_map(shape, &out.map);
  if (!out.copies) out.batch = {{1, 1}, {0, 0, 0}};
  return out;
}

// The tile, and in how many parts of so many stages the depth is split.
struct Plan {
  int tile_n;
  int64_t tiles_m, tiles_n, splits, split_stages;
};

Plan make_plan(const Product& product, bool may_split, int64_t multiprocessors) {
  Plan plan;
  plan.tiles_m = ceil_div(product.m, WgmmaShape<128>::kTileM);
  const int64_t rows = product.batch.items() * plan.tiles_m;
  const int64_t small = rows * ceil_div(product.n, 128), large = rows * ceil_div(product.n, 256);
  const bool take_large = ceil_div(large, multiprocessors) * kLargeCost <=
                          ceil_div(small, multiprocessors) * kSmallCost;
  plan.tile_n = take_large ? 256 : 128;
  plan.tiles_n = ceil_div(product.n, plan.tile_n);
  const int64_t stages = ceil_div(product.k, kStageDepth);
  const int64_t wanted =
      std::min(multiprocessors / (take_large ? large : small), stages / kMinSplitStages);
  plan.split_stages = ceil_div(stages, may_split ? std::max<int64_t>(wanted, 1) : 1);
  plan.splits = ceil_div(stages, plan.split_stages);
  return plan;
}

template <class T>
void launch_tile(const WgmmaProblem& problem, int tile_n, const Operand& a, const Operand& b,
                 const Device& device) {
  if (tile_n == 256) {
    launch_wgmma<T, 256>(problem, a.major, b.major, device);
  } else {
    launch_wgmma<T, 128>(problem, a.major, b.major, device);
  }
}

}  // namespace

bool run_wgmma(const Gemm& gemm, const Device& device, Workspace& workspace) {
  const Limits& limits = device.limits();
  if (limits.major != 9 || limits.minor != 0) return false;  // the code is for 9.0a alone
  if (gemm.dtype != Dtype::kBFloat16 && gemm.dtype != Dtype::kFloat16) return false;
  if (gemm.dtype_a != gemm.dtype || gemm.dtype_b != gemm.dtype) return false;
  if (gemm.dtype_c != gemm.dtype && gemm.dtype_c != Dtype::kFloat32) return false;
  if (gemm.a == nullptr || gemm.s != nullptr || gemm.fold != Fold::kNone) return false;

  Product product;
  if (!describe(gemm, &product)) return false;
  for (int64_t size : {product.m, product.n, product.k}) {
    if (size < kMinSize || size > kMaxSize) return false;
  }
  Operand a, b;
  if (!describe_operand(gemm.a, gemm.dtype, product.m, product.k, product.m_a, product.k_a,
                        product.batch, &BatchDim::a, &a) ||
      !describe_operand(gemm.b, gemm.dtype, product.n, product.k, product.n_b, product.k_b,
                        product.batch, &BatchDim::b, &b)) {
    return false;
  }
  // Partial sums are those of the whole C, and a bias is of all its rows or of all its columns.
  const bool whole_m = product.m == gemm.m, whole_n = product.n == gemm.n;
  if (gemm.bias != nullptr && !(gemm.bias_on_rows ? whole_m : whole_n)) return false;
  // Tiles are counted in 32 bits.
  const int64_t items = product.batch.items();
  if (items > kMaxSize) return false;
  if (ceil_div(product.m, 128) * ceil_div(product.n, 128) > kMaxSize / items) return false;
  const Plan plan = make_plan(product, whole_m && whole_n, limits.multiprocessors);
  const int64_t tiles = plan.tiles_m * plan.tiles_n * items * plan.splits;
  // The tiles of mma are a quarter of the small tile here. Where each can have a multiprocessor of
  // its own, they are done sooner.
  if (tiles * 4 <= limits.multiprocessors) return false;

  WgmmaProblem problem{};
  if (!encode(a, WgmmaShape<128>::kTileM, &problem.a) || !encode(b, plan.tile_n, &problem.b)) {
    return false;
  }
  problem.batch_a = a.batch;
  problem.batch_b = b.batch;
  problem.schedule = {static_cast<uint32_t>(plan.tiles_m),
                      static_cast<uint32_t>(plan.tiles_n),
                      static_cast<uint32_t>(items),
                      static_cast<uint32_t>(plan.splits),
                      static_cast<uint32_t>(ceil_div(product.k, kStageDepth)),
                      static_cast<uint32_t>(plan.split_stages)};
  problem.m = static_cast<uint32_t>(product.m);
  problem.n = static_cast<uint32_t>(product.n);
  if (plan.splits == 1) {
    problem.bias = gemm.bias;
    problem.bias_stride = gemm.bias_stride;
    problem.bias_on_rows = gemm.bias_on_rows;
    problem.scale = static_cast<float>(gemm.scale);
    problem.out = describe_output(gemm.c, gemm.dtype_c, product.m, product.n, product.m_c,
                                  product.n_c, product.batch);
  } else {
    const int64_t elements = gemm.items * gemm.m * gemm.n;
    Batch batch;  // [splits, items] of the partial sums
    batch.push({plan.splits, 0, 0, elements});
    batch.push({gemm.items, 0, 0, gemm.m * gemm.n});
    void* partial = workspace.take(static_cast<size_t>(plan.splits * elements) * sizeof(float));
    problem.scale = 1;
    problem.out = describe_output(partial, Dtype::kFloat32, gemm.m, gemm.n, gemm.n, 1, batch);
  }
  if (gemm.dtype == Dtype::kBFloat16) {
    launch_tile<Bf16>(problem, plan.tile_n, a, b, device);
  } else {
    launch_tile<F16>(problem, plan.tile_n, a, b, device);
  }
  if (plan.splits > 1) add_splits(gemm, device, problem.out.data, plan.splits);
  return true;
}

}  // namespace matcalc::cuda
