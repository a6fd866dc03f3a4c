#include "model/kernels/rms_norm.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/kernels/dispatch.h"
#include "model/kernels/simd.h"

namespace hanok {
namespace {

struct Forward {
  template <class W, class T, class A>
  HANOK_SIMD_BODY void operator()(
      W, const T* x, const T* weight, T* y, A* rstd, int64_t rows, int64_t dim, A eps) const {
    for (int64_t row = 0; row < rows; ++row, x += dim, y += dim) {
      A sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < dim; ++i) sum += static_cast<A>(x[i]) * static_cast<A>(x[i]);
      const A scale = A(1) / std::sqrt(sum / static_cast<A>(dim) + eps);
      rstd[row] = scale;
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i)
        y[i] = static_cast<T>(static_cast<A>(static_cast<T>(static_cast<A>(x[i]) * scale)) * static_cast<A>(weight[i]));
    }
  }
};

// dx = rstd * (g - xhat * mean(g * xhat)) with g = dy * weight, xhat = x * rstd; dweight += dy * xhat.
struct Backward {
  template <class W, class T, class A>
  HANOK_SIMD_BODY void operator()(
      W, const T* dy, const T* x, const T* weight, const A* rstd, T* dx, A* dweight, int64_t rows, int64_t dim) const {
    for (int64_t row = 0; row < rows; ++row, x += dim, dy += dim, dx += dim) {
      const A scale = rstd[row];
      A dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < dim; ++i) {
        const A g = static_cast<A>(dy[i]), xhat = static_cast<A>(x[i]) * scale;
        dot += g * static_cast<A>(weight[i]) * xhat;
        dweight[i] += g * xhat;
      }
      const A mean = dot / static_cast<A>(dim);
#pragma omp simd
      for (int64_t i = 0; i < dim; ++i) {
        const A g = static_cast<A>(dy[i]) * static_cast<A>(weight[i]), xhat = static_cast<A>(x[i]) * scale;
        dx[i] = static_cast<T>(scale * (g - xhat * mean));
      }
    }
  }
};

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x_in, const Tensor& weight, double eps) {
    const Tensor x = x_in.contiguous();
    const int64_t dim = weight.size(0), rows = x.numel() / dim;
    Tensor y = at::empty_like(x);
    Tensor rstd = at::empty({rows}, x.options().dtype(accumulate_type(x.scalar_type())));
    dispatch_float(x.scalar_type(), "rms_norm", [&](auto tag) {
      using T = decltype(tag);
      using A = Accumulate<T>;
      const T *x_data = x.const_data_ptr<T>(), *weight_data = weight.const_data_ptr<T>();
      T* y_data = y.mutable_data_ptr<T>();
      A* rstd_data = rstd.mutable_data_ptr<A>();
      at::parallel_for(0, rows, row_grain(dim), [&](int64_t begin, int64_t end) {
        simd::call(Forward{},
                   x_data + begin * dim,
                   weight_data,
                   y_data + begin * dim,
                   rstd_data + begin,
                   end - begin,
                   dim,
                   static_cast<A>(eps));
      });
    });
    ctx->save_for_backward({x, weight, rstd});
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &rstd = saved[2];
    const Tensor dy = grads[0].contiguous();
    const int64_t dim = weight.size(0), rows = rstd.size(0), blocks = (rows + kRowBlock - 1) / kRowBlock;
    Tensor dx = at::empty_like(x);
    Tensor partial = at::zeros({blocks, dim}, rstd.options());
    dispatch_float(x.scalar_type(), "rms_norm", [&](auto tag) {
      using T = decltype(tag);
      using A = Accumulate<T>;
      const T *dy_data = dy.const_data_ptr<T>(), *x_data = x.const_data_ptr<T>(), *w_data = weight.const_data_ptr<T>();
      const A* rstd_data = rstd.const_data_ptr<A>();
      T* dx_data = dx.mutable_data_ptr<T>();
      A* partial_data = partial.mutable_data_ptr<A>();
      at::parallel_for(0, blocks, row_grain(dim * kRowBlock), [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * kRowBlock, count = std::min(kRowBlock, rows - first);
          simd::call(Backward{},
                     dy_data + first * dim,
                     x_data + first * dim,
                     w_data,
                     rstd_data + first,
                     dx_data + first * dim,
                     partial_data + block * dim,
                     count,
                     dim);
        }
      });
    });
    Tensor dweight;
    if (ctx->needs_input_grad(1)) dweight = partial.sum(0).to(weight.scalar_type());
    return {dx, dweight, Tensor()};
  }
};

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps) {
  HANOK_REQUIRE(x.dim() >= 1 && x.size(-1) == weight_D.size(0), kShape)
      << "rms_norm: got rows of width " << x.size(-1) << ", expected " << weight_D.size(0);
  if (x.is_cpu()) return RmsNorm::apply(x, weight_D, eps);
  const Tensor wide = x.to(accumulate_type(x.scalar_type()));
  return (wide * at::rsqrt(wide.square().mean(-1, true) + eps)).to(x.scalar_type()) * weight_D;
}

}  // namespace hanok
