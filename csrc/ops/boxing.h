// The calling convention of torch's stable ABI around an op. It does what TORCH_BOX does, but hands
// tensors over as they come: TORCH_BOX wraps each in a shared pointer and returns a second handle
// of each result, which costs as much as the arithmetic of a small product.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

#include <torch/csrc/stable/stableivalue_conversions.h>

#include "tensor.h"

namespace matcalc {
namespace boxing {

template <class T>
struct Value {  // bool
  static T take(StableIValue value) { return torch::stable::detail::to<T>(value); }
};

template <>
struct Value<Tensor> {
  static Tensor take(StableIValue value) {
    return Tensor(torch::stable::detail::to<AtenTensorHandle>(value));
  }
  static StableIValue give(Tensor tensor) { return torch::stable::detail::from(tensor.release()); }
};

template <>
struct Value<OptionalTensor> {
  using Raw = std::optional<AtenTensorHandle>;
  static OptionalTensor take(StableIValue value) {
    const Raw handle = torch::stable::detail::to<Raw>(value);
    return handle.has_value() ? OptionalTensor(*handle) : std::nullopt;
  }
  static StableIValue give(OptionalTensor tensor) {
    return torch::stable::detail::from(tensor.has_value() ? Raw(tensor->release()) : Raw());
  }
};

template <class... Results>
void give(StableIValue* stack, std::tuple<Results...> results) {
  std::apply([&](auto&... result) { ((*stack++ = Value<Results>::give(std::move(result))), ...); },
             results);
}

inline void give(StableIValue* stack, Tensor result) {
  *stack = Value<Tensor>::give(std::move(result));
}

template <class Result, class... Args, std::size_t... I>
void call(Result (*op)(Args...), StableIValue* stack, std::index_sequence<I...>) {
  // Every argument is taken over before the op runs, so that an error frees them all.
  const std::tuple<std::remove_cvref_t<Args>...> args{
      Value<std::remove_cvref_t<Args>>::take(stack[I])...};
  give(stack, op(std::get<I>(args)...));
}

template <class Result, class... Args>
void call(Result (*op)(Args...), StableIValue* stack) {
  call(op, stack, std::index_sequence_for<Args...>{});
}

}  // namespace boxing

// To be registered for `op`. Torch has matched the arguments against the op's schema.
template <auto op>
void box(StableIValue* stack, uint64_t, uint64_t) {
  boxing::call(op, stack);
}

}  // namespace matcalc
