#include "index.cuh"

#include "launch.cuh"

namespace matcalc::cuda {
namespace {

constexpr int kTableThreads = 256;

__global__ void fill_table(const StridedDims dims, int64_t numel, int64_t* table) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTableThreads;
  int64_t position = static_cast<int64_t>(blockIdx.x) * kTableThreads + threadIdx.x;
  for (; position < numel; position += step) {
    int64_t rest = position, offset = 0;
    for (int d = dims.count - 1; d >= 0; --d) {
      const int64_t outer = rest / dims.size[d];
      offset += (rest - outer * dims.size[d]) * dims.stride[d];
      rest = outer;
    }
    table[position] = offset;
  }
}

}  // namespace

Offsets make_offsets(const StridedDims& dims, const Device& device, Workspace& workspace) {
  StridedDims merged;
  merged.count = 0;
  Offsets offsets{};
  offsets.numel = 1;
  for (int i = 0; i < dims.count; ++i) {
    offsets.numel *= dims.size[i];
    if (dims.size[i] == 1) continue;
    if (merged.count > 0 && merged.stride[merged.count - 1] == dims.size[i] * dims.stride[i]) {
      merged.size[merged.count - 1] *= dims.size[i];
      merged.stride[merged.count - 1] = dims.stride[i];
    } else {
      merged.size[merged.count] = dims.size[i];
      merged.stride[merged.count] = dims.stride[i];
      ++merged.count;
    }
  }
  offsets.fits32 = offsets.numel <= INT32_MAX;
  if (merged.count <= Offsets::kDims) {
    offsets.count = merged.count;
    for (int d = 0; d < merged.count; ++d) {
      offsets.size[d] = merged.size[d];
      offsets.stride[d] = merged.stride[d];
    }
    return offsets;
  }
  auto* table =
      static_cast<int64_t*>(workspace.take(static_cast<size_t>(offsets.numel) * sizeof(int64_t)));
  const int64_t blocks = std::min<int64_t>(ceil_div(offsets.numel, kTableThreads), 4096);
  launch("fill_table", fill_table, blocks, kTableThreads, 0, device, merged, offsets.numel, table);
  offsets.table = table;
  return offsets;
}

}  // namespace matcalc::cuda
