#include "model/kernels/rms_norm.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/rms_norm_cuda.h"
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

void forward_cpu(const Tensor& x, const Tensor& weight, double eps, Tensor& y, Tensor& rstd) {
  const int64_t dim = weight.size(0);
  dispatch_float(x.scalar_type(), "rms_norm", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T *x_data = x.const_data_ptr<T>(), *weight_data = weight.const_data_ptr<T>();
    T* y_data = y.mutable_data_ptr<T>();
    A* rstd_data = rstd.mutable_data_ptr<A>();
    at::parallel_for(0, rstd.size(0), row_grain(dim), [&](int64_t begin, int64_t end) {
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
}

/// Returns the gradient of the weight in the accumulation dtype.
Tensor backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd, Tensor& dx) {
  const int64_t dim = weight.size(0), rows = rstd.size(0), blocks = (rows + kRowBlock - 1) / kRowBlock;
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
  return partial.sum(0);
}

/// Of x, or of x + added, which is then written to `sum`.
void forward_cuda(
    const Tensor& x, const Tensor& added, const Tensor& weight, double eps, Tensor& sum, Tensor& y, Tensor& rstd) {
  launch(RmsNormForward{.call = cuda_call(x, "rms_norm"),
                        .x = data_of(x),
                        .added = data_of(added),
                        .weight = data_of(weight),
                        .sum = mutable_data_of(sum),
                        .y = mutable_data_of(y),
                        .rstd = mutable_data_of(rstd),
                        .rows = rstd.size(0),
                        .dim = weight.size(0),
                        .eps = eps});
}

/// Returns the gradient of the weight. dx: with dsum added, where that is defined.
Tensor backward_cuda(
    const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& rstd, const Tensor& dsum, Tensor& dx) {
  const CudaCall call = cuda_call(x, "rms_norm");
  const int64_t rows = rstd.size(0), dim = weight.size(0);
  Tensor partial = at::empty({norm_partials(call.type, rows, dim), dim}, rstd.options());
  Tensor dweight = at::empty_like(weight);
  launch(RmsNormBackward{.call = call,
                         .dy = data_of(dy),
                         .x = data_of(x),
                         .weight = data_of(weight),
                         .dsum = data_of(dsum),
                         .rstd = data_of(rstd),
                         .dx = mutable_data_of(dx),
                         .dweight = mutable_data_of(dweight),
                         .partial = mutable_data_of(partial),
                         .rows = rows,
                         .dim = dim});
  return dweight;
}

Tensor empty_rstd(const Tensor& x, const Tensor& weight) {
  return at::empty({x.numel() / weight.size(0)}, x.options().dtype(accumulate_type(x.scalar_type())));
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& x_in, const Tensor& weight, double eps) {
    const Tensor x = x_in.contiguous();
    Tensor y = at::empty_like(x), rstd = empty_rstd(x, weight), no_sum;
    if (x.is_cpu())
      forward_cpu(x, weight, eps, y, rstd);
    else
      forward_cuda(x, Tensor(), weight, eps, no_sum, y, rstd);
    ctx->save_for_backward({x, weight, rstd});
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &rstd = saved[2];
    const Tensor dy = grads[0].contiguous();
    Tensor dx = at::empty_like(x);
    const Tensor dweight =
        x.is_cpu() ? backward_cpu(dy, x, weight, rstd, dx) : backward_cuda(dy, x, weight, rstd, Tensor(), dx);
    return {dx, ctx->needs_input_grad(1) ? dweight.to(weight.scalar_type()) : Tensor(), Tensor()};
  }
};

/// -> x + added, and its norm.
struct AddRmsNorm : torch::autograd::Function<AddRmsNorm> {
  static torch::autograd::tensor_list forward(
      torch::autograd::AutogradContext* ctx, const Tensor& x, const Tensor& added, const Tensor& weight, double eps) {
    Tensor sum = at::empty_like(x, at::MemoryFormat::Contiguous), y = at::empty_like(sum), rstd = empty_rstd(x, weight);
    forward_cuda(x.contiguous(), added.contiguous(), weight, eps, sum, y, rstd);
    ctx->save_for_backward({sum, weight, rstd});
    ctx->set_materialize_grads(false);
    return {sum, y};
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &sum = saved[0], &weight = saved[1], &rstd = saved[2];
    if (!grads[1].defined()) return {grads[0], grads[0], Tensor(), Tensor()};
    const Tensor dsum = grads[0].defined() ? grads[0].contiguous() : Tensor();
    Tensor dx = at::empty_like(sum);
    const Tensor dweight = backward_cuda(grads[1].contiguous(), sum, weight, rstd, dsum, dx);
    return {dx, dx, dweight, Tensor()};
  }
};

void require_width(const Tensor& x, const Tensor& weight) {
  HANOK_REQUIRE(x.dim() >= 1 && x.size(-1) == weight.size(0), kShape)
      << "rms_norm: got rows of width " << x.size(-1) << ", expected " << weight.size(0);
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight_D, double eps) {
  require_width(x, weight_D);
  return RmsNorm::apply(x, weight_D, eps);
}

SumAndNorm add_rms_norm(const Tensor& x, const Tensor& added, const Tensor& weight_D, double eps) {
  require_width(x, weight_D);
  HANOK_REQUIRE(x.sizes() == added.sizes() && x.scalar_type() == added.scalar_type(), kShape)
      << "add_rms_norm: got " << added.sizes() << " to add to " << x.sizes() << ", expected the same shape and dtype";
  if (x.is_cpu()) {
    const Tensor sum = x + added;
    return {sum, RmsNorm::apply(sum, weight_D, eps)};
  }
  const auto both = AddRmsNorm::apply(x, added, weight_D, eps);
  return {both[0], both[1]};
}

}  // namespace hanok
