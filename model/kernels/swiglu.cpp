#include "model/kernels/swiglu.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/simd.h"
#include "model/kernels/swiglu_cuda.h"

namespace hanok {
namespace {

struct Forward {
  template <class W, class T>
  HANOK_SIMD_BODY void operator()(W, const T* h, T* y, int64_t rows, int64_t width) const {
    using A = Accumulate<T>;
    for (int64_t row = 0; row < rows; ++row, h += 2 * width, y += width) {
      const T *gate = h, *up = h + width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A g = static_cast<A>(gate[i]);
        y[i] = static_cast<T>(static_cast<A>(static_cast<T>(g / (A(1) + simd::exp(-g)))) * static_cast<A>(up[i]));
      }
    }
  }
};

// d silu(g) / dg = s * (1 + g * (1 - s)) with s = sigmoid(g).
struct Backward {
  template <class W, class T>
  HANOK_SIMD_BODY void operator()(W, const T* dy, const T* h, T* dh, int64_t rows, int64_t width) const {
    using A = Accumulate<T>;
    for (int64_t row = 0; row < rows; ++row, h += 2 * width, dh += 2 * width, dy += width) {
      const T *gate = h, *up = h + width;
      T *dgate = dh, *dup = dh + width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        const A g = static_cast<A>(gate[i]), d = static_cast<A>(dy[i]);
        const A s = A(1) / (A(1) + simd::exp(-g));
        dgate[i] = static_cast<T>(d * static_cast<A>(up[i]) * (s * (A(1) + g * (A(1) - s))));
        dup[i] = static_cast<T>(d * (g * s));
      }
    }
  }
};

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& h_in) {
    const Tensor h = h_in.contiguous();
    auto shape = h.sizes().vec();
    const int64_t width = shape.back() /= 2, rows = h.numel() / (2 * width);
    Tensor y = at::empty(shape, h.options());
    ctx->save_for_backward({h});
    if (!h.is_cpu()) {
      launch(SwiGluForward{
          .call = cuda_call(h, "swiglu"), .h = data_of(h), .y = mutable_data_of(y), .rows = rows, .width = width});
      return y;
    }
    dispatch_float(h.scalar_type(), "swiglu", [&](auto tag) {
      using T = decltype(tag);
      const T* h_data = h.const_data_ptr<T>();
      T* y_data = y.mutable_data_ptr<T>();
      at::parallel_for(0, rows, row_grain(width), [&](int64_t begin, int64_t end) {
        simd::call(Forward{}, h_data + begin * 2 * width, y_data + begin * width, end - begin, width);
      });
    });
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor& h = saved[0];
    const Tensor dy = grads[0].contiguous();
    const int64_t width = dy.size(-1), rows = dy.numel() / width;
    Tensor dh = at::empty_like(h);
    if (!h.is_cpu()) {
      launch(SwiGluBackward{.call = cuda_call(h, "swiglu"),
                            .dy = data_of(dy),
                            .h = data_of(h),
                            .dh = mutable_data_of(dh),
                            .rows = rows,
                            .width = width});
      return {dh};
    }
    dispatch_float(h.scalar_type(), "swiglu", [&](auto tag) {
      using T = decltype(tag);
      const T *dy_data = dy.const_data_ptr<T>(), *h_data = h.const_data_ptr<T>();
      T* dh_data = dh.mutable_data_ptr<T>();
      at::parallel_for(0, rows, row_grain(width), [&](int64_t begin, int64_t end) {
        simd::call(Backward{},
                   dy_data + begin * width,
                   h_data + begin * 2 * width,
                   dh_data + begin * 2 * width,
                   end - begin,
                   width);
      });
    });
    return {dh};
  }
};

}  // namespace

Tensor swiglu(const Tensor& h) {
  HANOK_REQUIRE(h.dim() >= 1 && h.size(-1) % 2 == 0 && h.size(-1) > 0, kShape)
      << "swiglu: got width " << h.size(-1) << ", expected gate and up side by side (an even number)";
  return SwiGlu::apply(h);
}

}  // namespace hanok
