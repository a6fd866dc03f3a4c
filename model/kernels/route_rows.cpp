#include "model/kernels/route_rows.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/route_rows_cuda.h"

namespace hanok {
namespace {

const int64_t* indices(const Tensor& x) {
  return x.const_data_ptr<int64_t>();
}

/// y_n = weight[slot_n] * x[slot_n / K]; undefined weight: 1
Tensor spread(const Tensor& x, const Tensor& slot_N, const Tensor& weight_TK, int64_t choices) {
  const int64_t width = x.size(1);
  Tensor y = at::empty({slot_N.size(0), width}, x.options());
  if (!x.is_cpu()) {
    launch(SpreadRows{.call = cuda_call(x, "gather_rows"),
                      .x = data_of(x),
                      .slot = indices(slot_N),
                      .weight = data_of(weight_TK),
                      .y = mutable_data_of(y),
                      .num_rows = y.size(0),
                      .choices = choices,
                      .width = width});
    return y;
  }
  dispatch_float(x.scalar_type(), "gather_rows", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T* from = x.const_data_ptr<T>();
    const T* weight = weight_TK.defined() ? weight_TK.const_data_ptr<T>() : nullptr;
    const int64_t* slot = indices(slot_N);
    T* to = y.mutable_data_ptr<T>();
    at::parallel_for(0, y.size(0), row_grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* source = from + slot[n] / choices * width;
        const A factor = weight ? static_cast<A>(weight[slot[n]]) : A(1);
        for (int64_t i = 0; i < width; ++i) to[n * width + i] = static_cast<T>(factor * static_cast<A>(source[i]));
      }
    });
  });
  return y;
}

/// y_t = sum_k weight_tk * x[place_tk]; undefined weight: 1
Tensor collect(const Tensor& x, const Tensor& weight_TK, const Tensor& place_TK) {
  const int64_t rows = place_TK.size(0), choices = place_TK.size(1), width = x.size(1);
  Tensor y = at::empty({rows, width}, x.options());
  if (!x.is_cpu()) {
    launch(CollectRows{.call = cuda_call(x, "combine_rows"),
                       .x = data_of(x),
                       .weight = data_of(weight_TK),
                       .place = indices(place_TK),
                       .y = mutable_data_of(y),
                       .num_rows = rows,
                       .choices = choices,
                       .width = width});
    return y;
  }
  dispatch_float(x.scalar_type(), "combine_rows", [&](auto tag) {
    using T = decltype(tag);
    using A = Accumulate<T>;
    const T* from = x.const_data_ptr<T>();
    const T* weight = weight_TK.defined() ? weight_TK.const_data_ptr<T>() : nullptr;
    const int64_t* place = indices(place_TK);
    T* to = y.mutable_data_ptr<T>();
    at::parallel_for(0, rows, row_grain(width * choices), [&](int64_t begin, int64_t end) {
      std::vector<A> sum(width);
      for (int64_t t = begin; t < end; ++t) {
        std::fill(sum.begin(), sum.end(), A(0));
        for (int64_t k = 0; k < choices; ++k) {
          const int64_t at = place[t * choices + k];
          if (at < 0) continue;
          const A factor = weight ? static_cast<A>(weight[t * choices + k]) : A(1);
          for (int64_t i = 0; i < width; ++i) sum[i] += factor * static_cast<A>(from[at * width + i]);
        }
        for (int64_t i = 0; i < width; ++i) to[t * width + i] = static_cast<T>(sum[i]);
      }
    });
  });
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
                        .place = indices(place_TK),
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
    const int64_t* place = indices(place_TK);
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

Tensor combine_rows(const Tensor& x_ND, const Tensor& weight_TK, const Tensor& slot_N, const Tensor& place_TK) {
  require_places(x_ND, slot_N, place_TK, true);
  HANOK_REQUIRE(weight_TK.sizes() == place_TK.sizes() && weight_TK.scalar_type() == x_ND.scalar_type(), kShape)
      << "weights of routed rows: got " << weight_TK.sizes() << " " << at::toString(weight_TK.scalar_type())
      << ", expected " << place_TK.sizes() << " " << at::toString(x_ND.scalar_type());
  return Combine::apply(x_ND, weight_TK, slot_N, place_TK);
}

}  // namespace hanok
