#include "model/kernels/route_rows.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/move_rows.h"
#include "model/kernels/route_rows_cuda.h"

namespace hanok {
namespace {

Tensor spread(const Tensor& x, const Tensor& slot_N, const Tensor& weight_TK, int64_t choices) {
  Tensor y = at::empty({slot_N.size(0), x.size(1)}, x.options());
  spread_rows(x, slot_N, weight_TK, choices, y);
  return y;
}

Tensor collect(const Tensor& x, const Tensor& weight_TK, const Tensor& place_TK) {
  Tensor y = at::empty({place_TK.size(0), x.size(1)}, x.options());
  collect_rows(x, weight_TK, place_TK, y);
  return y;
}

/// dweight_tk = <dy_t, x[place_tk]>
Tensor weight_gradient(const Tensor& x, const Tensor& dy, const Tensor& place_TK) {
  const int64_t rows = place_TK.size(0), choices = place_TK.size(1), width = x.size(1);
  Tensor dweight = at::empty({rows, choices}, x.options());
  if (!x.is_cpu()) {
    launch(WeightOfRows{.call = cuda_call(x, "combine_rows"),
                        .x = data_of(x),
                        .dy = data_of(dy),
                        .place = place_TK.const_data_ptr<int64_t>(),
                        .dweight = mutable_data_of(dweight),
                        .num_rows = rows,
                        .choices = choices,
                        .width = width});
    return dweight;
  }
  dispatch_float(x.scalar_type(), "combine_rows", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T *from = x.const_data_ptr<T>(), *gradient = dy.const_data_ptr<T>();
    const int64_t* place = place_TK.const_data_ptr<int64_t>();
    T* to = dweight.mutable_data_ptr<T>();
    at::parallel_for(0, rows * choices, row_grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        A sum = 0;
        if (place[j] >= 0)
          for (int64_t i = 0; i < width; ++i)
            sum += static_cast<A>(gradient[j / choices * width + i]) * static_cast<A>(from[place[j] * width + i]);
        to[j] = static_cast<T>(sum);
      }
    });
  });
  return dweight;
}

struct Gather : torch::autograd::Function<Gather> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& slot_N,
                        const Tensor& place_TK) {
    ctx->save_for_backward({place_TK});
    return spread(x.contiguous(), slot_N, Tensor(), place_TK.size(1));
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    return {collect(grads[0].contiguous(), Tensor(), ctx->get_saved_variables()[0]), Tensor(), Tensor()};
  }
};

struct Combine : torch::autograd::Function<Combine> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x_in,
                        const Tensor& weight_in,
                        const Tensor& slot_N,
                        const Tensor& place_TK) {
    const Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    ctx->save_for_backward({x, weight, slot_N, place_TK});
    return collect(x, weight, place_TK);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], &slot = saved[2], &place = saved[3];
    const Tensor dy = grads[0].contiguous();
    Tensor dx, dweight;
    if (ctx->needs_input_grad(0)) dx = spread(dy, slot, weight, place.size(1));
    if (ctx->needs_input_grad(1)) dweight = weight_gradient(x, dy, place);
    return {dx, dweight, Tensor(), Tensor()};
  }
};

struct Sum : torch::autograd::Function<Sum> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& slot_N,
                        const Tensor& place_TK) {
    ctx->save_for_backward({slot_N});
    ctx->saved_data["choices"] = place_TK.size(1);
    return collect(x.contiguous(), Tensor(), place_TK);
  }
  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const Tensor slot = ctx->get_saved_variables()[0];
    return {spread(grads[0].contiguous(), slot, Tensor(), ctx->saved_data["choices"].toInt()), Tensor(), Tensor()};
  }
};

void require_places(const Tensor& x, const Tensor& slot_N, const Tensor& place_TK, bool x_is_sent) {
  HANOK_REQUIRE(x.dim() == 2 && slot_N.dim() == 1 && place_TK.dim() == 2 && slot_N.is_contiguous() &&
                    place_TK.is_contiguous() && place_TK.numel() < (int64_t{1} << 31) &&
                    x.size(0) == (x_is_sent ? slot_N.size(0) : place_TK.size(0)),
                kShape)
      << "routed rows: got " << x.sizes() << " with slots " << slot_N.sizes() << " and places " << place_TK.sizes()
      << ", expected [T, D], [N] and [T, K]";
}

}  // namespace

Tensor gather_rows(const Tensor& x_TD, const Tensor& slot_N, const Tensor& place_TK) {
  require_places(x_TD, slot_N, place_TK, false);
  return Gather::apply(x_TD, slot_N, place_TK);
}

Tensor sum_rows(const Tensor& x_ND, const Tensor& slot_N, const Tensor& place_TK) {
  require_places(x_ND, slot_N, place_TK, true);
  return Sum::apply(x_ND, slot_N, place_TK);
}

Tensor combine_rows(const Tensor& x_ND, const Tensor& weight_TK, const Tensor& slot_N, const Tensor& place_TK) {
  require_places(x_ND, slot_N, place_TK, true);
  HANOK_REQUIRE(weight_TK.sizes() == place_TK.sizes() && weight_TK.scalar_type() == x_ND.scalar_type(), kShape)
      << "weights of routed rows: got " << weight_TK.sizes() << " " << at::toString(weight_TK.scalar_type())
      << ", expected " << place_TK.sizes() << " " << at::toString(x_ND.scalar_type());
  return Combine::apply(x_ND, weight_TK, slot_N, place_TK);
}

}  // namespace hanok
