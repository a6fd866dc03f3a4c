#include "model/kernels/gelu_tanh.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/gelu_tanh_cuda.h"
#include "model/kernels/simd.h"

namespace hanok {
namespace {

constexpr double kSlope = 1.5957691216057308;  // 2 sqrt(2 / pi): (1 + tanh u) / 2 = sigmoid(2 u)
constexpr double kCubic = 0.044715;

struct Forward {
  template <class W, class T>
  HANOK_SIMD_BODY void operator()(W, const T* x, T* y, int64_t count) const {
    using A = Accumulate<T>;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A v = static_cast<A>(x[i]);
      y[i] = static_cast<T>(v / (A(1) + simd::exp(-A(kSlope) * (v + A(kCubic) * v * v * v))));
    }
  }
};

struct Backward {
  template <class W, class T>
  HANOK_SIMD_BODY void operator()(W, const T* dy, const T* x, T* dx, int64_t count) const {
    using A = Accumulate<T>;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const A v = static_cast<A>(x[i]);
      const A u = A(kSlope) * (v + A(kCubic) * v * v * v);
      // The smaller of s = sigmoid(u) and 1 - s: as a difference from 1 it would have lost its digits.
      const A small = A(1) / (A(1) + simd::exp(u < A(0) ? -u : u)), s = u < A(0) ? small : A(1) - small;
      const A slope = A(kSlope) * (A(1) + A(3) * A(kCubic) * v * v);
      dx[i] = static_cast<T>(static_cast<A>(dy[i]) * (s + v * small * (A(1) - small) * slope));
    }
  }
};

struct GeluTanh : torch::autograd::Function<GeluTanh> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x_in) {
    const Tensor x = x_in.contiguous();
    Tensor y = at::empty_like(x);
    ctx->save_for_backward({x});
    if (!x.is_cpu()) {
      launch(GeluTanhForward{
          .call = cuda_call(x, "gelu_tanh"), .x = data_of(x), .y = mutable_data_of(y), .count = x.numel()});
      return y;
    }
    dispatch_float(x.scalar_type(), "gelu_tanh", [&](auto tag) {
      using T = decltype(tag);
      const T* x_data = x.const_data_ptr<T>();
      T* y_data = y.mutable_data_ptr<T>();
      at::parallel_for(0, x.numel(), row_grain(1), [&](int64_t begin, int64_t end) {
        simd::call(Forward{}, x_data + begin, y_data + begin, end - begin);
      });
    });
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& x = saved[0];
    const Tensor dy = grads[0].contiguous();
    Tensor dx = at::empty_like(x);
    if (!x.is_cpu()) {
      launch(GeluTanhBackward{.call = cuda_call(x, "gelu_tanh"),
                              .dy = data_of(dy),
                              .x = data_of(x),
                              .dx = mutable_data_of(dx),
                              .count = x.numel()});
      return {dx};
    }
    dispatch_float(x.scalar_type(), "gelu_tanh", [&](auto tag) {
      using T = decltype(tag);
      const T *dy_data = dy.const_data_ptr<T>(), *x_data = x.const_data_ptr<T>();
      T* dx_data = dx.mutable_data_ptr<T>();
      at::parallel_for(0, x.numel(), row_grain(1), [&](int64_t begin, int64_t end) {
        simd::call(Backward{}, dy_data + begin, x_data + begin, dx_data + begin, end - begin);
      });
    });
    return {dx};
  }
};

}  // namespace

Tensor gelu_tanh(const Tensor& x) {
  return GeluTanh::apply(x);
}

}  // namespace hanok
