#include "model/layers/linear.h"

#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "model/kernels/add_product.h"
#include "model/tensor_overlap.h"
#include "parallel/grad_buffer.h"
#include "parallel/kept.h"
#include "parallel/redistribute.h"
#include "parallel/underway.h"

namespace hanok {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

/// buffer += dy^T x where the weight has a buffer; else the product itself.
Tensor add_or_make_product(const Tensor& weight, const Tensor& dy, const Tensor& x) {
  GradTarget target = grad_target(weight);
  if (!target.buffer.defined()) return at::mm(dy.t(), x);
  target.is_empty ? set_product(target.buffer, dy.t(), x) : add_product(target.buffer, dy.t(), x);
  return {};
}

void add_put_off(const Tensor& weight, const Tensor& bias, const Tensor& x, const Tensor& dy) {
  add_put_off_gradient(weight, add_or_make_product(weight, dy, x));
  if (bias.defined()) add_put_off_gradient(bias, dy.sum(0));
}

/// What a backward hands autograd for x, weight and bias, and for `others` that have no gradient. Those of weight and
/// bias (undefined: there is none) are made at once, or by work given to `later` if it is not empty.
tensor_list gradients(const AutogradContext& ctx,
                      const Tensor& dx,
                      const tensor_list& weight_and_bias,
                      const Tensor& x,
                      const Tensor& dy,
                      const std::function<void(WeightGradients::Work)>& later,
                      size_t others) {
  const Tensor &weight = weight_and_bias[0], &bias = weight_and_bias[1];
  const bool has_bias = bias.defined() && ctx.needs_input_grad(2);
  tensor_list out(3 + others);
  out[0] = dx;
  if (later && ctx.needs_input_grad(1)) {
    put_gradient_off(weight);
    if (has_bias) put_gradient_off(bias);
    later([weight, bias = has_bias ? bias : Tensor(), x, dy] { add_put_off(weight, bias, x, dy); });
    return out;
  }
  if (ctx.needs_input_grad(1)) out[1] = add_or_make_product(weight, dy, x);
  if (has_bias) out[2] = dy.sum(0);
  return out;
}

std::function<void(WeightGradients::Work)> later_in(WeightGradients* deferred) {
  if (!deferred) return {};
  return [deferred](WeightGradients::Work work) { deferred->add(std::move(work)); };
}

/// y = x w^T + b, whose weight gradient is added straight to the buffer of the step where the weight has one.
struct Matmul : torch::autograd::Function<Matmul> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        WeightGradients* deferred,
                        bool is_part_of_sum) {
    remember(*ctx, deferred);
    // x is for the gradient of the weight only: below frozen layers it need not stay.
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight, bias.value_or(Tensor())});
    const auto compute = [&] { return at::linear(x, weight, bias); };
    return is_part_of_sum ? kept_part(compute) : kept(compute);
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const tensor_list saved = ctx->get_saved_variables();
    Tensor dx;
    if (ctx->needs_input_grad(0)) dx = at::mm(grads[0], saved[1]);
    return gradients(*ctx, dx, {saved[1], saved[2]}, saved[0], grads[0], later_in(deferring_now(*ctx)), 2);
  }
};

/// Where rows travel, as an object that autograd can keep.
struct Way : torch::CustomClassHolder {
  Way(std::shared_ptr<Comm> group, TensorOverlap* overlap) : group(std::move(group)), overlap(overlap) {}
  Underway gather(const Tensor& x) const { return Underway::gather(x, *group, overlap->side()); }
  Underway reduce_scatter(const Tensor& x) const { return Underway::reduce_scatter(x, *group, overlap->side()); }
  std::shared_ptr<Comm> group;
  TensorOverlap* overlap;
};

void save_way(AutogradContext& ctx, const c10::intrusive_ptr<Way>& way) {
  ctx.saved_data["way"] = c10::IValue::make_capsule(way);
}

const Way& way_of(const AutogradContext& ctx) {
  // The capsule was made by save_way() above: the type is known.
  return static_cast<const Way&>(*ctx.saved_data.at("way").toCapsule());
}

/// gathered(x) w^T + b. On a GPU own rows are multiplied while those of the other ranks come. `all`: what was gathered
Tensor product_of_all(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Way& way, Tensor& all) {
  Underway others = way.gather(x);
  if (!way.overlap->in_forward()) {
    all = others.arrived();
    return at::linear(all, weight, bias);
  }
  const int64_t rows = x.size(0), begin = way.group->rank() * rows, total = way.group->size() * rows;
  Tensor y = at::empty({total, weight.size(0)}, x.options());
  const auto fill = [&](int64_t first, const Tensor& in) {
    if (in.size(0) == 0) return;
    Tensor out = y.narrow(0, first, in.size(0));
    bias ? at::addmm_out(out, *bias, in, weight.t()) : at::mm_out(out, in, weight.t());
  };
  {
    const LeaveRoom room(way.overlap->side());
    fill(begin, x);
  }
  all = others.arrived();
  fill(0, all.narrow(0, 0, begin));
  fill(begin + rows, all.narrow(0, begin + rows, total - begin - rows));
  return y;
}

/// The product of all ranks' rows: y = gathered(x) w^T + b. Weight gradients are made while the gradient of x is summed
/// over the ranks.
struct GatherMatmul : torch::autograd::Function<GatherMatmul> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        const std::optional<Tensor>& bias,
                        WeightGradients* deferred,
                        const c10::intrusive_ptr<Way>& way) {
    remember(*ctx, deferred);
    save_way(*ctx, way);
    Tensor all;
    const Tensor y = kept([&] { return product_of_all(x, weight, bias, *way, all); });
    // A layer that runs again has its product from the first run: there rows come under the product of the backward.
    ctx->saved_data["is_gathered"] = all.defined();
    const Tensor& rows = all.defined() ? all : x;
    ctx->save_for_backward({weight.requires_grad() ? rows : Tensor(), weight, bias.value_or(Tensor())});
    return y;
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const tensor_list saved = ctx->get_saved_variables();
    const Tensor &weight = saved[1], &dy = grads[0];
    const Way& way = way_of(*ctx);
    Tensor rows = saved[0];
    std::optional<Underway> all, sum;
    if (rows.defined() && !ctx->saved_data["is_gathered"].toBool()) all = way.gather(rows);
    std::optional<LeaveRoom> room;
    if (all) room.emplace(way.overlap->side());
    if (ctx->needs_input_grad(0)) sum = way.reduce_scatter(at::mm(dy, weight));
    if (sum && !room) room.emplace(way.overlap->side());
    if (all) rows = all->arrived();
    tensor_list out = gradients(*ctx, Tensor(), {weight, saved[2]}, rows, dy, later_in(deferring_now(*ctx)), 2);
    if (sum) out[0] = sum->arrived();
    return out;
  }
};

/// reduce_scattered(x w^T). On a GPU sums of a piece of every rank's rows travel while the next one is multiplied.
Tensor summed_product(const Tensor& x, const Tensor& weight, const Way& way) {
  const int64_t ranks = way.group->size(), rows = x.size(0) / ranks;
  const int64_t pieces = way.overlap->in_forward() ? std::min(way.overlap->pieces(), rows) : 1;
  if (pieces <= 1) return way.reduce_scatter(at::linear(x, weight)).arrived();
  const Tensor blocks = x.contiguous().view({ranks, rows, x.size(1)});
  const Tensor weights = weight.t().expand({ranks, weight.size(1), weight.size(0)});
  const Tensor own = at::empty({rows, weight.size(0)}, x.options());
  std::vector<Underway> sums;
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t begin = rows * p / pieces, size = rows * (p + 1) / pieces - begin;
    std::optional<LeaveRoom> room;
    if (p > 0) room.emplace(way.overlap->side());
    const Tensor part = at::bmm(blocks.narrow(1, begin, size), weights).flatten(0, 1);
    sums.push_back(Underway::reduce_scatter(part, own.narrow(0, begin, size), *way.group, way.overlap->side()));
  }
  for (Underway& sum : sums) sum.arrived();
  return own;
}

/// The product as a part of a sum over ranks, and this rank's rows of that: y = reduce_scattered(x w^T). Its weight
/// gradient is kept back: it is made while the gradient of the next product of this kind is gathered.
struct MatmulScatter : torch::autograd::Function<MatmulScatter> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Tensor& weight,
                        WeightGradients* deferred,
                        const c10::intrusive_ptr<Way>& way) {
    remember(*ctx, deferred);
    save_way(*ctx, way);
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    return kept([&] { return summed_product(x, weight, *way); });
  }

  static tensor_list backward(AutogradContext* ctx, tensor_list grads) {
    const tensor_list saved = ctx->get_saved_variables();
    const Way& way = way_of(*ctx);
    Underway travelling = way.gather(grads[0]);
    {
      const LeaveRoom room(way.overlap->side());
      way.overlap->run_held();
    }
    const Tensor dy = travelling.arrived();
    Tensor dx;
    if (ctx->needs_input_grad(0)) dx = at::mm(dy, saved[1]);
    std::function<void(WeightGradients::Work)> later = later_in(deferring_now(*ctx));
    if (!later) later = [&way](WeightGradients::Work work) { way.overlap->hold(std::move(work)); };
    return gradients(*ctx, dx, {saved[1], Tensor()}, saved[0], dy, later, 1);
  }
};

}  // namespace

Linear::Linear(const BuildContext& ctx, const LinearShape& shape)
    : rule_(ctx.rule()), groups_(&ctx.groups()), deferred_(ctx.deferred()), overlap_(ctx.overlap()) {
  weight_ = ctx.param("weight", {.shape = {shape.out, shape.in}, .segments = shape.segments, .init = ctx.random()});
  if (!shape.bias) return;
  const bool cut = rule_.cut == Cut::kColumn;
  bias_ = ctx.param("bias",
                    {.shape = {shape.out}, .segments = cut ? shape.segments : std::vector<Segment>{}, .init = zeros()});
}

Tensor Linear::forward(const Tensor& x) const {
  const bool column = rule_.cut == Cut::kColumn, row = rule_.cut == Cut::kRow && groups_->tp->size() > 1;
  if (overlap_ && column && rule_.in == Layout::kSequence) {
    const std::optional<Tensor> bias = bias_.defined() ? std::optional<Tensor>(bias_) : std::nullopt;
    return GatherMatmul::apply(x, weight_, bias, deferred_, c10::make_intrusive<Way>(groups_->tp, overlap_));
  }
  if (overlap_ && row && rule_.out == Layout::kSequence) {
    const Tensor sum = MatmulScatter::apply(x, weight_, deferred_, c10::make_intrusive<Way>(groups_->tp, overlap_));
    return bias_.defined() ? sum + bias_ : sum;
  }
  const Tensor in = column ? redistribute(x, rule_.in, Layout::kFull, *groups_) : x;
  const std::optional<Tensor> bias = row || !bias_.defined() ? std::nullopt : std::optional<Tensor>(bias_);
  const Tensor y = Matmul::apply(in, weight_, bias, deferred_, row);
  if (!row) return y;
  const Tensor sum = redistribute(y, Layout::kPartial, rule_.out, *groups_);
  return bias_.defined() ? sum + bias_ : sum;  // once, after the sum
}

}  // namespace hanok
