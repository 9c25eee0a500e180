// What the ops know of tensors: an argument read once into a plain struct, and fresh contiguous
// results. Everything goes through the C functions of torch's stable ABI, without a container or
// a string on the way of a call that succeeds.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <utility>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include "../kernels.h"
#include "device.h"
#include "errors.h"

namespace matcalc {

// The kernels' dimension lists hold this many and three more.
constexpr int64_t kMaxTensorDims = 64;

// A tensor that is owned: its handle is deleted unless it is given away. Cheaper than
// torch::stable::Tensor, which allocates a reference count of its own.
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

 private:
  AtenTensorHandle handle_ = nullptr;
};

using OptionalTensor = std::optional<Tensor>;

// An argument of an op. The pointers are borrowed from the tensor.
struct Operand {
  const char* name;
  const void* data;
  const int64_t* sizes;
  const int64_t* strides;
  int64_t dim;
  int32_t dtype;  // torch's number, as are the next two
  int32_t device_type;
  int32_t device_index;

  Operand(const char* op, const char* name, const Tensor& tensor);

  // Counted from the end: size(1) is the last dimension. 1 and 0 where there is no such dimension,
  // so that a missing dimension reads like one to broadcast.
  int64_t size(int64_t from_end) const { return from_end <= dim ? sizes[dim - from_end] : 1; }
  int64_t stride(int64_t from_end) const {
    return from_end <= dim && sizes[dim - from_end] != 1 ? strides[dim - from_end] : 0;
  }
  Shape shape() const { return {sizes, dim}; }
};

// Sizes of a result or of a batch.
struct Dims {
  int64_t count = 0;
  int64_t sizes[kMaxDims];

  Dims() = default;
  Dims(std::initializer_list<int64_t> list) {
    for (const int64_t size : list) push(size);
  }
  Dims(const Dims& other) { *this = other; }
  Dims& operator=(const Dims& other) {  // copies what is used, not the whole array
    count = other.count;
    for (int64_t i = 0; i < count; ++i) sizes[i] = other.sizes[i];
    return *this;
  }
  void push(int64_t size) { sizes[count++] = size; }
  Shape shape() const { return {sizes, count}; }
};

// A fresh contiguous tensor.
struct Result {
  Tensor tensor;
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t numel = 0;
  int64_t dim = 0;
  int64_t sizes[kMaxTensorDims];
  int64_t strides[kMaxTensorDims];

  int64_t size(int64_t from_end) const { return from_end <= dim ? sizes[dim - from_end] : 1; }
  int64_t stride(int64_t from_end) const {
    return from_end <= dim && sizes[dim - from_end] != 1 ? strides[dim - from_end] : 0;
  }
  Tensor take() { return std::move(tensor); }
};

// What all operands of a call share, once they are checked to.
struct Call {
  const char* op;
  Dtype dtype;
  int32_t torch_dtype;
  int32_t device_type;
  int32_t device_index;
  const Kernels* kernels;

  // Intermediate results of low precision inputs are kept in float32, so that an op rounds once.
  Dtype intermediate_dtype() const {
    return dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16 ? Dtype::kFloat32 : dtype;
  }
  int32_t intermediate_torch_dtype() const;

  Result empty(const int64_t* sizes, int64_t dim) const;
  Result empty(const Dims& dims) const { return empty(dims.sizes, dims.count); }
  Result empty_like(const Operand& operand) const { return empty(operand.sizes, operand.dim); }
  Result intermediate(const Dims& dims) const;  // of intermediate_dtype()

  // A product that is an operand of matrix products in its turn stays bfloat16: two bfloat16
  // operands are multiplied twice as fast. It is rounded then, which float16 with its range cannot
  // afford.
  bool rounds_products() const { return dtype == Dtype::kBFloat16; }
  Result product(const Dims& dims, bool operand) const {
    return operand && rounds_products() ? empty(dims) : intermediate(dims);
  }
};

enum class Integers { kRefused, kAccepted };

// Checks that the operands have one supported dtype and one device with kernels. nullptr: absent.
Call check_operands(const char* op, std::initializer_list<const Operand*> operands,
                    Integers integers = Integers::kRefused);

// An operand and how many of its last dimensions are not batch dimensions.
struct Batched {
  const Operand* operand;
  int64_t own;
};

// The broadcast batch dimensions of the operands.
Dims broadcast_batch(const char* op, std::initializer_list<Batched> operands);

// Stride of an operand or a result along dimension d of the batch, 0 where it is broadcast.
template <class T>
int64_t batch_stride(const T& tensor, int64_t own, const Dims& batch, int64_t d) {
  return tensor.stride(batch.count - d + own);
}

// Whether a gradient of this operand is summed over batch dimensions.
bool batch_reduced(const Operand& operand, int64_t own, const Dims& batch);

void check_min_dim(const char* op, const Operand& operand, int64_t least);
bool has_shape(const Operand& operand, const Dims& expected);
void check_grad_shape(const char* op, const Operand& grad, const Dims& expected);

inline OptionalTensor take_if(bool wanted, Result& result) {
  return wanted ? OptionalTensor(result.take()) : std::nullopt;
}

}  // namespace matcalc
