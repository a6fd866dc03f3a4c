#include "parallel/collectives.h"

#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "base/error.h"
#include "parallel/kept.h"
#include "parallel/side_stream.h"

namespace hanok {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What backward needs, as an object that autograd can keep.
struct Saved : torch::CustomClassHolder {
  std::shared_ptr<Comm> group;
  Splits splits;
  std::function<void()> meanwhile;
};

void save(AutogradContext* ctx,
          const std::shared_ptr<Comm>& group,
          Splits splits = {},
          std::function<void()> meanwhile = {}) {
  auto saved = c10::make_intrusive<Saved>();
  saved->group = group;
  saved->splits = std::move(splits);
  saved->meanwhile = std::move(meanwhile);
  ctx->saved_data["saved"] = c10::IValue::make_capsule(std::move(saved));
}

Saved& saved(AutogradContext* ctx) {
  // The capsule was made by save() above: the type is known.
  return static_cast<Saved&>(*ctx->saved_data["saved"].toCapsule());
}

int64_t rows_of(const Tensor& x) {
  HANOK_REQUIRE(x.dim() >= 1, kShape)
      << "collective: got a scalar, expected rows [n, ...]; cut along dim 0; unsqueeze it";
  return x.size(0);
}

Tensor with_rows(const Tensor& x, int64_t rows) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape[0] = rows;
  return at::empty(shape, x.options());
}

Tensor all_reduced(const Tensor& x, Comm& group) {
  Tensor y = x.clone(at::MemoryFormat::Contiguous);
  group.all_reduce(y, Reduce::kSum);
  return y;
}

void require_divisible(const Tensor& x, const Comm& group) {
  HANOK_REQUIRE(rows_of(x) % group.size() == 0, kShape)
      << "rows: got " << x.size(0) << ", expected a multiple of " << group.size() << "; group " << group.name()
      << "; pad the rows";
}

Tensor own_block(const Tensor& x, const Comm& group) {
  require_divisible(x, group);
  const int64_t rows = x.size(0) / group.size();
  return x.narrow(0, group.rank() * rows, rows).clone(at::MemoryFormat::Contiguous);
}

Tensor reduce_scattered(const Tensor& x, Comm& group) {
  require_divisible(x, group);
  Tensor out = with_rows(x, x.size(0) / group.size());
  group.reduce_scatter(out, x.contiguous());
  return out;
}

Tensor room_for_received(const Tensor& x, const Splits& splits) {
  rows_of(x);
  return with_rows(x, std::accumulate(splits.receive.begin(), splits.receive.end(), int64_t{0}));
}

Tensor exchanged(const Tensor& x, const Splits& splits, Comm& group) {
  Tensor out = room_for_received(x, splits);
  group.all_to_all(out, x.contiguous(), splits);
  return out;
}

Tensor unchanged(const Tensor& x, Comm&) {
  return x.view_as(x);
}

/// Sums over ranks are kept where a block will run again; gathers of what is cheap to redo are not.
template <auto kForward>
constexpr bool is_kept = false;
template <>
constexpr bool is_kept<all_reduced> = true;
template <>
constexpr bool is_kept<reduce_scattered> = true;

/// A pair of functions of (tensor, group): one for forward, its conjugate for backward.
template <auto kForward, auto kBackward>
struct Pair : torch::autograd::Function<Pair<kForward, kBackward>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::shared_ptr<Comm>& group) {
    save(ctx, group);
    const auto compute = [&] { return kForward(x, *group); };
    return is_kept<kForward> ? kept(compute) : compute();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {kBackward(grads[0], *saved(ctx).group), Tensor()};
  }
};

/// As exchanged(), on a GPU beside what `meanwhile` gives the current stream.
Tensor exchanged_beside(const Tensor& x, const Splits& splits, Comm& group, const std::function<void()>& meanwhile) {
  const at::NoGradGuard no_grad;
  SideStream& side = travel_stream(x.device());
  const Tensor in = x.contiguous();  // memory of the current stream, held until that has waited for the side
  Tensor out = room_for_received(in, splits);
  side.run([] {});
  const SideStream::Mark begun = side.mark();
  side.run_ahead([&] { group.all_to_all(out, in, splits); });
  const SideStream::Mark done = side.mark();
  begun.wait();  // a product that came first would take every multiprocessor until its end
  meanwhile();
  done.wait();
  return out;
}

struct ExchangeRows : torch::autograd::Function<ExchangeRows> {
  static Tensor forward(AutogradContext* ctx,
                        const Tensor& x,
                        const Splits& splits,
                        const std::shared_ptr<Comm>& group,
                        const std::function<void()>& meanwhile) {
    save(ctx, group, {.send = splits.receive, .receive = splits.send}, meanwhile);
    return kept([&] { return exchanged(x, splits, *group); });
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Saved& how = saved(ctx);
    const Tensor rows = how.meanwhile ? exchanged_beside(grads[0], how.splits, *how.group, how.meanwhile)
                                      : exchanged(grads[0], how.splits, *how.group);
    return {rows, Tensor(), Tensor(), Tensor()};
  }
};

template <auto kForward, auto kBackward>
Tensor apply(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return group->size() == 1 ? x : Pair<kForward, kBackward>::apply(x, group);
}

}  // namespace

Tensor copy_to_group(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return apply<unchanged, all_reduced>(x, group);
}

Tensor sum_over_group(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return apply<all_reduced, unchanged>(x, group);
}

Tensor split_to_group(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return apply<own_block, gathered>(x, group);
}

Tensor gather_and_split(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return apply<gathered, own_block>(x, group);
}

Tensor gather_and_reduce_scatter(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return apply<gathered, reduce_scattered>(x, group);
}

Tensor reduce_scatter_and_gather(const Tensor& x, const std::shared_ptr<Comm>& group) {
  return apply<reduce_scattered, gathered>(x, group);
}

Tensor gathered(const Tensor& x, Comm& group) {
  Tensor out = with_rows(x, rows_of(x) * group.size());
  group.all_gather(out, x.contiguous());
  return out;
}

Tensor exchange_rows(const Tensor& x,
                     const Splits& splits,
                     const std::shared_ptr<Comm>& group,
                     const std::function<void()>& meanwhile) {
  return group->size() == 1 ? x : ExchangeRows::apply(x, splits, group, meanwhile);
}

}  // namespace hanok
