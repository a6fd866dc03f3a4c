#include "model/kernels/layer_norm.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/layer_norm_cuda.h"
#include "model/kernels/rms_norm_cuda.h"

namespace hanok {
namespace {

struct CudaLayerNorm : torch::autograd::Function<CudaLayerNorm> {
  static Tensor forward(
      torch::autograd::AutogradContext* ctx, const Tensor& x_in, const Tensor& weight, const Tensor& bias, double eps) {
    const Tensor x = x_in.contiguous();
    const int64_t dim = weight.size(0), rows = x.numel() / dim;
    Tensor y = at::empty_like(x);
    Tensor mean = at::empty({rows}, x.options().dtype(accumulate_type(x.scalar_type()))), rstd = at::empty_like(mean);
    launch(LayerNormForward{.call = cuda_call(x, "layer_norm"),
                            .x = data_of(x),
                            .weight = data_of(weight),
                            .bias = data_of(bias),
                            .y = mutable_data_of(y),
                            .mean = mutable_data_of(mean),
                            .rstd = mutable_data_of(rstd),
                            .rows = rows,
                            .dim = dim,
                            .eps = eps});
    ctx->save_for_backward({x, weight, mean, rstd});
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &rstd = saved[3];
    const Tensor dy = grads[0].contiguous();
    const CudaCall call = cuda_call(x, "layer_norm");
    const int64_t dim = weight.size(0), rows = mean.size(0);
    Tensor dx = at::empty_like(x), dparams = at::empty({2, dim}, weight.options());
    Tensor partial = at::empty({norm_partials(call.type, rows, dim), 2, dim}, mean.options());
    launch(LayerNormBackward{.call = call,
                             .dy = data_of(dy),
                             .x = data_of(x),
                             .weight = data_of(weight),
                             .mean = data_of(mean),
                             .rstd = data_of(rstd),
                             .dx = mutable_data_of(dx),
                             .dparams = mutable_data_of(dparams),
                             .partial = mutable_data_of(partial),
                             .rows = rows,
                             .dim = dim});
    return {dx, dparams[0], dparams[1], Tensor()};
  }
};

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps) {
  HANOK_REQUIRE(x.dim() >= 1 && x.size(-1) == weight_D.size(0) && bias_D.sizes() == weight_D.sizes(), kShape)
      << "layer_norm: got rows of width " << x.size(-1) << " and a bias of " << bias_D.sizes() << ", expected "
      << weight_D.size(0);
  if (x.is_cpu()) return at::layer_norm(x, weight_D.sizes(), weight_D, bias_D, eps);
  return CudaLayerNorm::apply(x, weight_D, bias_D, eps);
}

}  // namespace hanok
