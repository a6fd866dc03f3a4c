#include "model/kernels/qk_rope.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/cuda/call.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/qk_rope_cuda.h"
#include "model/kernels/simd.h"

namespace hanok {
namespace {

struct Sizes {
  int64_t heads, kv_heads, width;  // N, K, H
  int64_t row() const { return (heads + 2 * kv_heads) * width; }
  int64_t turned() const { return heads + kv_heads; }
};

struct Forward {
  template <class W, class T, class C, class A>
  HANOK_SIMD_BODY void operator()(W,
                                  const T* x,
                                  const T* q_weight,
                                  const T* k_weight,
                                  const C* cos,
                                  const C* sin,
                                  T* y,
                                  A* rstd,
                                  int64_t rows,
                                  Sizes sizes,
                                  A eps) const {
    const int64_t width = sizes.width, half = width / 2;
    for (int64_t row = 0; row < rows; ++row, cos += half, sin += half) {
      for (int64_t head = 0; head < sizes.turned(); ++head, x += width, y += width) {
        const T* source = x;
        if (const T* weight = head < sizes.heads ? q_weight : k_weight) {
          A sum = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < width; ++i) sum += static_cast<A>(x[i]) * static_cast<A>(x[i]);
          const A scale = A(1) / std::sqrt(sum / static_cast<A>(width) + eps);
          *rstd++ = scale;
#pragma omp simd
          for (int64_t i = 0; i < width; ++i)
            y[i] = static_cast<T>(static_cast<A>(static_cast<T>(static_cast<A>(x[i]) * scale)) *
                                  static_cast<A>(weight[i]));
          source = y;
        }
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const A a = static_cast<A>(source[i]), b = static_cast<A>(source[i + half]);
          const A c = static_cast<A>(cos[i]), s = static_cast<A>(sin[i]);
          y[i] = static_cast<T>(round<C>(a * c) - round<C>(b * s));
          y[i + half] = static_cast<T>(round<C>(b * c) + round<C>(a * s));
        }
      }
#pragma omp simd
      for (int64_t i = 0; i < sizes.kv_heads * width; ++i) y[i] = x[i];
      x += sizes.kv_heads * width;
      y += sizes.kv_heads * width;
    }
  }
  template <class C, class A>
  static HANOK_SIMD_BODY A round(A value) {
    return static_cast<A>(static_cast<C>(value));
  }
};

struct Backward {
  template <class W, class T, class C, class A>
  HANOK_SIMD_BODY void operator()(W,
                                  const T* dy,
                                  const T* x,
                                  const T* q_weight,
                                  const T* k_weight,
                                  const C* cos,
                                  const C* sin,
                                  const A* rstd,
                                  T* dx,
                                  A* dweight,
                                  A* turned,
                                  int64_t rows,
                                  Sizes sizes) const {
    const int64_t width = sizes.width, half = width / 2;
    for (int64_t row = 0; row < rows; ++row, cos += half, sin += half) {
      for (int64_t head = 0; head < sizes.turned(); ++head, x += width, dx += width, dy += width) {
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const A a = static_cast<A>(dy[i]), b = static_cast<A>(dy[i + half]);
          const A c = static_cast<A>(cos[i]), s = static_cast<A>(sin[i]);
          turned[i] = a * c + b * s;
          turned[i + half] = b * c - a * s;
        }
        const T* weight = head < sizes.heads ? q_weight : k_weight;
        if (!weight) {
#pragma omp simd
          for (int64_t i = 0; i < width; ++i) dx[i] = static_cast<T>(turned[i]);
          continue;
        }
        A* dw = head < sizes.heads ? dweight : dweight + width;
        const A scale = *rstd++;
        A dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < width; ++i) {
          const A xhat = static_cast<A>(x[i]) * scale;
          dot += turned[i] * static_cast<A>(weight[i]) * xhat;
          dw[i] += turned[i] * xhat;
        }
        const A mean = dot / static_cast<A>(width);
#pragma omp simd
        for (int64_t i = 0; i < width; ++i) {
          const A xhat = static_cast<A>(x[i]) * scale;
          dx[i] = static_cast<T>(scale * (turned[i] * static_cast<A>(weight[i]) - xhat * mean));
        }
      }
#pragma omp simd
      for (int64_t i = 0; i < sizes.kv_heads * width; ++i) dx[i] = dy[i];
      x += sizes.kv_heads * width;
      dx += sizes.kv_heads * width;
      dy += sizes.kv_heads * width;
    }
  }
};

/// f(T{}, C{}) for the dtypes of activations and tables.
template <class F>
void dispatch_tables(const Tensor& qkv, const Tensor& cos, const F& f) {
  dispatch_float(qkv.scalar_type(), "qk_rope", [&](auto tag) {
    using T = decltype(tag);
    if (cos.scalar_type() == qkv.scalar_type()) return f(tag, T{});
    if constexpr (sizeof(T) == 2) f(tag, float{});
  });
}

QkRopeSizes cuda_sizes(int64_t rows, const Sizes& sizes) {
  return {rows, static_cast<int>(sizes.heads), static_cast<int>(sizes.kv_heads), static_cast<int>(sizes.width)};
}

template <class T>
const T* data_or_null(const Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

struct QkRopeFunction : torch::autograd::Function<QkRopeFunction> {
  static Tensor forward(torch::autograd::AutogradContext* ctx,
                        const Tensor& qkv_in,
                        const std::optional<Tensor>& q_weight_in,
                        const std::optional<Tensor>& k_weight_in,
                        const Tensor& cos,
                        const Tensor& sin,
                        Sizes sizes,
                        double eps) {
    const Tensor qkv = qkv_in.contiguous();
    const Tensor q_weight = q_weight_in.value_or(Tensor()), k_weight = k_weight_in.value_or(Tensor());
    const int64_t rows = qkv.size(0);
    Tensor y = at::empty_like(qkv);
    Tensor rstd;
    if (q_weight.defined())
      rstd = at::empty({rows, sizes.turned()}, qkv.options().dtype(accumulate_type(qkv.scalar_type())));
    ctx->save_for_backward({qkv, q_weight, k_weight, cos, sin, rstd});
    ctx->saved_data["heads"] = sizes.heads;
    ctx->saved_data["kv_heads"] = sizes.kv_heads;
    ctx->saved_data["width"] = sizes.width;
    if (!qkv.is_cpu()) {
      launch(QkRopeForward{.call = cuda_call(qkv, "qk_rope"),
                           .wide_tables = cos.scalar_type() != qkv.scalar_type(),
                           .x = data_of(qkv),
                           .q_weight = data_of(q_weight),
                           .k_weight = data_of(k_weight),
                           .cos = data_of(cos),
                           .sin = data_of(sin),
                           .y = mutable_data_of(y),
                           .rstd = mutable_data_of(rstd),
                           .sizes = cuda_sizes(rows, sizes),
                           .eps = eps});
      return y;
    }
    dispatch_tables(qkv, cos, [&](auto tag, auto table_tag) {
      using T = decltype(tag);
      using C = decltype(table_tag);
      using A = Accumulate<T>;
      const T *x_data = qkv.const_data_ptr<T>(), *qw = data_or_null<T>(q_weight), *kw = data_or_null<T>(k_weight);
      const C *cos_data = cos.const_data_ptr<C>(), *sin_data = sin.const_data_ptr<C>();
      T* y_data = y.mutable_data_ptr<T>();
      A* rstd_data = rstd.defined() ? rstd.mutable_data_ptr<A>() : nullptr;
      at::parallel_for(0, rows, row_grain(sizes.row()), [&](int64_t begin, int64_t end) {
        simd::call(Forward{},
                   x_data + begin * sizes.row(),
                   qw,
                   kw,
                   cos_data + begin * sizes.width / 2,
                   sin_data + begin * sizes.width / 2,
                   y_data + begin * sizes.row(),
                   rstd_data ? rstd_data + begin * sizes.turned() : nullptr,
                   end - begin,
                   sizes,
                   static_cast<A>(eps));
      });
    });
    return y;
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* ctx,
                                               torch::autograd::tensor_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &q_weight = saved[1], &k_weight = saved[2], &cos = saved[3], &sin = saved[4];
    const Tensor& rstd = saved[5];
    const Sizes sizes{
        ctx->saved_data["heads"].toInt(), ctx->saved_data["kv_heads"].toInt(), ctx->saved_data["width"].toInt()};
    const Tensor dy = grads[0].contiguous();
    const int64_t rows = qkv.size(0), blocks = (rows + kRowBlock - 1) / kRowBlock;
    Tensor dx = at::empty_like(qkv);
    const auto accumulate = qkv.options().dtype(accumulate_type(qkv.scalar_type()));
    if (!qkv.is_cpu()) {
      Tensor partial, dweight;
      if (q_weight.defined()) {
        partial = at::empty({qk_rope_partials(rows), 2, sizes.width}, accumulate);
        dweight = at::empty({2, sizes.width}, q_weight.options());
      }
      launch(QkRopeBackward{.call = cuda_call(qkv, "qk_rope"),
                            .wide_tables = cos.scalar_type() != qkv.scalar_type(),
                            .dy = data_of(dy),
                            .x = data_of(qkv),
                            .q_weight = data_of(q_weight),
                            .k_weight = data_of(k_weight),
                            .cos = data_of(cos),
                            .sin = data_of(sin),
                            .rstd = data_of(rstd),
                            .dx = mutable_data_of(dx),
                            .dweight = mutable_data_of(dweight),
                            .partial = mutable_data_of(partial),
                            .sizes = cuda_sizes(rows, sizes)});
      if (!dweight.defined()) return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
      return {dx, dweight[0], dweight[1], Tensor(), Tensor(), Tensor(), Tensor()};
    }
    Tensor partial = at::zeros({blocks, 2, sizes.width}, accumulate);
    dispatch_tables(qkv, cos, [&](auto tag, auto table_tag) {
      using T = decltype(tag);
      using C = decltype(table_tag);
      using A = Accumulate<T>;
      const T *dy_data = dy.const_data_ptr<T>(), *x_data = qkv.const_data_ptr<T>();
      const T *qw = data_or_null<T>(q_weight), *kw = data_or_null<T>(k_weight);
      const C *cos_data = cos.const_data_ptr<C>(), *sin_data = sin.const_data_ptr<C>();
      const A* rstd_data = data_or_null<A>(rstd);
      T* dx_data = dx.mutable_data_ptr<T>();
      A* partial_data = partial.mutable_data_ptr<A>();
      at::parallel_for(0, blocks, row_grain(sizes.row() * kRowBlock), [&](int64_t begin, int64_t end) {
        std::vector<A> turned(sizes.width);
        for (int64_t block = begin; block < end; ++block) {
          const int64_t first = block * kRowBlock, count = std::min(kRowBlock, rows - first);
          simd::call(Backward{},
                     dy_data + first * sizes.row(),
                     x_data + first * sizes.row(),
                     qw,
                     kw,
                     cos_data + first * sizes.width / 2,
                     sin_data + first * sizes.width / 2,
                     rstd_data ? rstd_data + first * sizes.turned() : nullptr,
                     dx_data + first * sizes.row(),
                     partial_data + block * 2 * sizes.width,
                     turned.data(),
                     count,
                     sizes);
        }
      });
    });
    Tensor dq_weight, dk_weight;
    if (q_weight.defined()) {
      const Tensor total = partial.sum(0).to(q_weight.scalar_type());
      dq_weight = total[0];
      dk_weight = total[1];
    }
    return {dx, dq_weight, dk_weight, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor qk_rope(const Tensor& qkv_TX, const QkRope& how) {
  const int64_t heads = how.num_heads + 2 * how.num_kv_heads, width = heads ? qkv_TX.size(-1) / heads : 0;
  HANOK_REQUIRE(heads > 0 && width * heads == qkv_TX.size(-1) && width % 2 == 0, kShape)
      << "qk_rope: got rows of width " << qkv_TX.size(-1) << ", expected " << heads << " heads of an even width";
  HANOK_REQUIRE(how.cos_TR.size(0) == qkv_TX.size(0) && how.cos_TR.size(1) == width / 2, kShape)
      << "qk_rope: got a table of " << how.cos_TR.sizes() << ", expected [" << qkv_TX.size(0) << ", " << width / 2
      << "]";
  const auto table = how.cos_TR.scalar_type();
  HANOK_REQUIRE(table == qkv_TX.scalar_type() || (table == at::kFloat && qkv_TX.element_size() == 2), kShape)
      << "qk_rope: got tables of " << at::toString(table) << ", expected " << at::toString(qkv_TX.scalar_type())
      << ", or float32 where that has 16 bits";
  const auto optional = [](const Tensor& x) { return x.defined() ? std::optional<Tensor>(x) : std::nullopt; };
  return QkRopeFunction::apply(qkv_TX,
                               optional(how.q_weight_H),
                               optional(how.k_weight_H),
                               how.cos_TR.contiguous(),
                               how.sin_TR.contiguous(),
                               Sizes{how.num_heads, how.num_kv_heads, width},
                               how.eps);
}

}  // namespace hanok
