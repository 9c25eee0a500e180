#include "tensor.h"

#include <algorithm>
#include <string>

#include <torch/headeronly/core/ScalarType.h>

namespace matcalc {
namespace {

#if defined(MATCALC_CUDA)
constexpr const char* kDevices = "kernels for the CPU and for CUDA";
#else
constexpr const char* kDevices = "kernels for the CPU";
#endif

struct DtypeRow {
  int32_t torch_dtype;
  Dtype dtype;
};

// The one place where torch's dtypes meet the kernels'.
bool find_dtype(int32_t torch_dtype, Dtype* dtype) {
  static const DtypeRow rows[] = {
      {aoti_torch_dtype_float32(), Dtype::kFloat32},
      {aoti_torch_dtype_float64(), Dtype::kFloat64},
      {aoti_torch_dtype_bfloat16(), Dtype::kBFloat16},
      {aoti_torch_dtype_float16(), Dtype::kFloat16},
      {aoti_torch_dtype_complex64(), Dtype::kComplex64},
      {aoti_torch_dtype_complex128(), Dtype::kComplex128},
      {aoti_torch_dtype_int64(), Dtype::kInt64},
      {aoti_torch_dtype_int32(), Dtype::kInt32},
      {aoti_torch_dtype_int16(), Dtype::kInt16},
      {aoti_torch_dtype_int8(), Dtype::kInt8},
      {aoti_torch_dtype_uint8(), Dtype::kUInt8},
  };
  for (const DtypeRow& row : rows) {
    if (row.torch_dtype == torch_dtype) {
      *dtype = row.dtype;
      return true;
    }
  }
  return false;
}

std::string dtype_name(int32_t torch_dtype) {
  const struct {
    int32_t torch_dtype;
    const char* name;
  } rows[] = {
      {aoti_torch_dtype_float32(), "float32"},     {aoti_torch_dtype_float64(), "float64"},
      {aoti_torch_dtype_bfloat16(), "bfloat16"},   {aoti_torch_dtype_float16(), "float16"},
      {aoti_torch_dtype_complex64(), "complex64"}, {aoti_torch_dtype_complex128(), "complex128"},
      {aoti_torch_dtype_complex32(), "complex32"}, {aoti_torch_dtype_bool(), "bool"},
      {aoti_torch_dtype_int64(), "int64"},         {aoti_torch_dtype_int32(), "int32"},
      {aoti_torch_dtype_int16(), "int16"},         {aoti_torch_dtype_int8(), "int8"},
      {aoti_torch_dtype_uint8(), "uint8"},         {aoti_torch_dtype_uint16(), "uint16"},
      {aoti_torch_dtype_uint32(), "uint32"},       {aoti_torch_dtype_uint64(), "uint64"},
  };
  for (const auto& row : rows) {
    if (row.torch_dtype == torch_dtype) return row.name;
  }
  // What is left (quantised and 8-bit floating types) goes by torch's C++ name.
  return torch::headeronly::toString(static_cast<torch::headeronly::ScalarType>(torch_dtype));
}

std::string device_name(const Operand& operand) {
  const struct {
    int32_t device_type;
    const char* name;
  } rows[] = {
      {aoti_torch_device_type_cpu(), "cpu"},   {aoti_torch_device_type_cuda(), "cuda"},
      {aoti_torch_device_type_meta(), "meta"}, {aoti_torch_device_type_mps(), "mps"},
      {aoti_torch_device_type_xpu(), "xpu"},
  };
  std::ostringstream name;
  const char* type = nullptr;
  for (const auto& row : rows) {
    if (row.device_type == operand.device_type) type = row.name;
  }
  if (type != nullptr) {
    name << type;
  } else {
    name << "device type " << operand.device_type;
  }
  if (operand.device_index >= 0) name << ':' << operand.device_index;
  return name.str();
}

// Whether the storage holds every element of the operand: one that was freed does not.
bool within(int64_t storage_numel, int64_t offset, const Operand& operand) {
  int64_t last = offset;
  for (int64_t i = 0; i < operand.dim; ++i) {
    if (operand.sizes[i] == 0) return true;
    last += (operand.sizes[i] - 1) * operand.strides[i];
  }
  return last < storage_numel;
}

[[noreturn, gnu::cold]] void fail_read(const char* op, const char* name) {
  fail(op, ": ", name, " could not be read: expected a dense tensor with storage");
}

Result allocate(const Call& call, Dtype dtype, int32_t torch_dtype, const int64_t* sizes,
                int64_t dim) {
  Result result;
  if (dim > kMaxTensorDims) {
    fail(call.op, ": the result would have ", dim, " dimensions, at most ", kMaxTensorDims,
         " are supported");
  }
  result.dtype = dtype;
  result.dim = dim;
  int64_t stride = 1;
  result.numel = 1;
  for (int64_t i = dim - 1; i >= 0; --i) {
    result.sizes[i] = sizes[i];
    result.strides[i] = stride;
    // 16 bytes, the largest element, must be countable too.
    if (__builtin_mul_overflow(stride, sizes[i] > 1 ? sizes[i] : 1, &stride) ||
        stride > INT64_MAX / 16) {
      fail(call.op, ": a result of shape ", Shape{sizes, dim}, " has too many elements");
    }
    result.numel *= sizes[i];  // at most the new stride
  }
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(dim, result.sizes, result.strides, torch_dtype, call.device_type,
                               call.device_index, &handle) != AOTI_TORCH_SUCCESS) {
    fail(call.op, ": not enough memory for a result of shape ", Shape{sizes, dim}, ", dtype ",
         dtype_name(torch_dtype));
  }
  result.tensor = Tensor(handle);
  if (torch_get_mutable_data_ptr(handle, &result.data) != AOTI_TORCH_SUCCESS) {
    fail(call.op, ": torch gave a result without storage");
  }
  if (call.kernels->prepare_result != nullptr) {
    call.kernels->prepare_result(result.data, result.numel * dtype_size(result.dtype));
  }
  return result;
}

}  // namespace

Operand::Operand(const char* op, const char* operand_name, const Tensor& tensor)
    : name(operand_name) {
  static const int32_t strided = aoti_torch_layout_strided();
  const AtenTensorHandle handle = tensor.get();
  bool defined = false;
  if (handle == nullptr || aoti_torch_is_defined(handle, &defined) != AOTI_TORCH_SUCCESS ||
      !defined) {
    fail(op, ": ", name, " is an undefined tensor, expected a dense tensor");
  }
  int32_t layout = 0;
  if (aoti_torch_get_layout(handle, &layout) != AOTI_TORCH_SUCCESS) fail_read(op, name);
  if (layout != strided) {
    fail(op, ": ", name, " is sparse or of another layout that is not strided, expected a dense ",
         "tensor: call to_dense() first");
  }
  int64_t* read_sizes = nullptr;
  int64_t* read_strides = nullptr;
  int64_t storage_numel = 0, offset = 0;
  if (aoti_torch_get_dim(handle, &dim) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_sizes(handle, &read_sizes) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_strides(handle, &read_strides) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_dtype(handle, &dtype) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_device_type(handle, &device_type) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_device_index(handle, &device_index) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_storage_numel(handle, &storage_numel) != AOTI_TORCH_SUCCESS ||
      aoti_torch_get_storage_offset(handle, &offset) != AOTI_TORCH_SUCCESS ||
      torch_get_const_data_ptr(handle, &data) != AOTI_TORCH_SUCCESS) {
    fail_read(op, name);
  }
  sizes = read_sizes;
  strides = read_strides;
  if (dim > kMaxTensorDims) {
    fail(op, ": ", name, " has ", dim, " dimensions, at most ", kMaxTensorDims, " are supported");
  }
  if (!within(storage_numel, offset, *this)) {
    fail(op, ": ", name, " of shape ", shape(), " has no memory, expected a tensor whose storage ",
         "holds all its elements: its untyped_storage() was freed or made smaller by resize_()");
  }
}

Result Call::empty(const int64_t* sizes, int64_t dim) const {
  return allocate(*this, dtype, torch_dtype, sizes, dim);
}

int32_t Call::intermediate_torch_dtype() const {
  static const int32_t float32 = aoti_torch_dtype_float32();
  return intermediate_dtype() == dtype ? torch_dtype : float32;
}

Result Call::intermediate(const Dims& dims) const {
  return allocate(*this, intermediate_dtype(), intermediate_torch_dtype(), dims.sizes, dims.count);
}

Call check_operands(const char* op, std::initializer_list<const Operand*> operands,
                    Integers integers) {
  const Operand& first = **operands.begin();
  for (const Operand* operand : operands) {
    if (operand == nullptr) continue;
    if (operand->dtype != first.dtype) {
      fail(op, ": ", first.name, " is ", dtype_name(first.dtype), " and ", operand->name, " is ",
           dtype_name(operand->dtype), ", expected one dtype for all operands");
    }
    if (operand->device_type != first.device_type || operand->device_index != first.device_index) {
      fail(op, ": ", first.name, " is on ", device_name(first), " and ", operand->name, " is on ",
           device_name(*operand), ", expected one device for all operands");
    }
  }
  Call call{op, Dtype::kFloat32, first.dtype, first.device_type, first.device_index, nullptr};
  if (!find_dtype(first.dtype, &call.dtype) ||
      (is_integer(call.dtype) && integers == Integers::kRefused)) {
    fail(op, ": ", first.name, " is ", dtype_name(first.dtype), ", expected float64, float32, ",
         "bfloat16, float16, complex64 or complex128",
         integers == Integers::kAccepted ? ", or int64, int32, int16, int8 or uint8" : "");
  }
  call.kernels = find_kernels(first.device_type);
  if (call.kernels == nullptr) {
    fail(op, ": ", first.name, " is on ", device_name(first),
         ", but this build of matcalc_ext has ", kDevices, " only: move the operands with .cpu()");
  }
  return call;
}

Dims broadcast_batch(const char* op, std::initializer_list<Batched> operands) {
  Dims batch;
  for (const Batched& item : operands) {
    batch.count = std::max(batch.count, item.operand->dim - item.own);
  }
  for (int64_t d = 0; d < batch.count; ++d) {
    batch.sizes[d] = 1;
    const Operand* source = nullptr;
    for (const Batched& item : operands) {
      const int64_t size = item.operand->size(batch.count - d + item.own);
      if (size == 1 || size == batch.sizes[d]) continue;
      if (source != nullptr) {
        fail(op, ": the batch dimensions of ", source->name, " ", source->shape(), " and ",
             item.operand->name, " ", item.operand->shape(), " do not broadcast: sizes ",
             batch.sizes[d], " and ", size, " meet");
      }
      batch.sizes[d] = size;
      source = item.operand;
    }
  }
  return batch;
}

bool batch_reduced(const Operand& operand, int64_t own, const Dims& batch) {
  for (int64_t d = 0; d < batch.count; ++d) {
    if (operand.size(batch.count - d + own) != batch.sizes[d]) return true;
  }
  return false;
}

bool has_shape(const Operand& operand, const Dims& expected) {
  return operand.dim == expected.count &&
         std::equal(operand.sizes, operand.sizes + operand.dim, expected.sizes);
}

void check_min_dim(const char* op, const Operand& operand, int64_t least) {
  if (operand.dim < least) {
    fail(op, ": ", operand.name, " has ", operand.dim,
         operand.dim == 1 ? " dimension" : " dimensions", ", expected at least ", least);
  }
}

void check_grad_shape(const char* op, const Operand& grad, const Dims& expected) {
  if (!has_shape(grad, expected)) {
    fail(op, ": grad has shape ", grad.shape(), ", expected the output's shape ", expected.shape());
  }
}

}  // namespace matcalc
