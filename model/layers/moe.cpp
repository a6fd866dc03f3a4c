#include "model/layers/moe.h"

#include <numeric>

#include "base/error.h"
#include "model/kernels/dispatch.h"
#include "model/kernels/grouped_linear.h"
#include "model/kernels/route_rows.h"
#include "model/kernels/swiglu.h"
#include "parallel/collectives.h"
#include "parallel/redistribute.h"

namespace hanok {
namespace {

/// The part of the rows that this rank of tp answers for.
struct OwnRows {
  Tensor x_TD;
  int64_t begin = 0;  // among the rows of all ranks of tp
  int64_t total = 0;  // of them, without those added at the end to make the parts equal
  int64_t added = 0;
};

bool is_cut_already(const Groups& groups) {
  return groups.tp->size() == 1 || groups.sequence_parallel;
}

OwnRows own_rows(const Tensor& x_TD, const Groups& groups) {
  const int64_t rows = x_TD.size(0), parts = groups.tp->size(), rank = groups.tp->rank();
  if (is_cut_already(groups)) return {x_TD, rows * rank, rows * parts, 0};
  const int64_t each = (rows + parts - 1) / parts, added = each * parts - rows;
  const Tensor even = added > 0 ? at::constant_pad_nd(x_TD, {0, 0, 0, added}) : x_TD;
  return {split_to_group(even, groups.tp), each * rank, rows, added};
}

Tensor all_rows(const Tensor& y_TD, const OwnRows& own, const Groups& groups) {
  if (is_cut_already(groups)) return y_TD;
  const Tensor all = gather_and_split(y_TD, groups.tp);
  return own.added > 0 ? all.narrow(0, 0, own.total) : all;
}

/// The packed row of each own row; -1 where there is no token.
Tensor packed_rows(const Routing* routing, const OwnRows& own) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(own.x_TD.device());
  Tensor row_T = routing ? routing->row_T : at::zeros({own.total}, options);
  HANOK_REQUIRE(row_T.dim() == 1 && row_T.size(0) == own.total, kShape)
      << "packed rows of tokens: got " << row_T.sizes() << ", expected [" << own.total << "]; routing of a forward";
  if (own.added > 0) row_T = at::constant_pad_nd(row_T, {0, own.added}, -1);
  return row_T.narrow(0, own.begin, own.x_TD.size(0));
}

/// A permutation with holes: rows in the order in which they are sent.
struct Order {
  Tensor token_N;   // which row stands at n
  Tensor place_TK;  // where the k-th copy of row t stands; -1: nowhere
  Tensor counts_E;  // int64 on the device: rows of each expert, which lie together
};

/// Rows sorted by expert, and by token for each; those of no token are left out.
Order sorted_by_expert(const Tensor& index_TK, const Tensor& row_T, int64_t experts) {
  const int64_t choices = index_TK.size(1);
  const Tensor is_token = row_T.ge(0).unsqueeze(1);
  const Tensor expert = at::where(is_token, index_TK, at::scalar_tensor(experts, index_TK.options())).reshape({-1});
  const Tensor order = at::argsort(expert, /*stable=*/true, 0, false);
  const Tensor counts = at::bincount(expert, {}, experts + 1);
  Tensor place = at::empty_like(order);
  place.index_copy_(0, order, at::arange(order.size(0), order.options()));
  place = place.view({-1, choices}).masked_fill(is_token.logical_not(), -1);
  return {at::floor_divide(order, choices), place, counts.narrow(0, 0, experts)};
}

std::vector<int64_t> on_host(const Tensor& counts) {
  const Tensor host = counts.to(at::kCPU).contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

int64_t sum(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

/// Shares and experts that the router chose for the own rows.
struct MoeMlp::Choice {
  Tensor share_TK, index_TK;
};

MoeMlp::MoeMlp(const BuildContext& ctx, const DecoderConfig& config, int64_t layer)
    : groups_(&ctx.groups()),
      layer_(layer),
      num_layers_(config.layers),
      experts_(config.experts),
      choices_(config.experts_per_token),
      normalise_(config.norm_topk),
      router_(ctx.in("router"), {.in = config.hidden, .out = config.experts}) {
  const BuildContext experts = ctx.in("experts");
  up_EFD_ = experts.in("up").param("weight",
                                   {.shape = {experts_, 2 * config.expert_ffn, config.hidden}, .init = ctx.random()});
  down_EDF_ =
      experts.in("down").param("weight", {.shape = {experts_, config.hidden, config.expert_ffn}, .init = ctx.random()});
}

MoeMlp::Choice MoeMlp::choose(const Tensor& x_TD, const Tensor& row_T, const std::shared_ptr<Routing>& routing) const {
  const Tensor logits_TE = router_.forward(x_TD);
  Tensor share_TE = at::softmax(logits_TE, -1, accumulate_type(logits_TE.scalar_type()));
  if (routing) share_TE = with_balance(share_TE, row_T, routing);
  auto [share_TK, index_TK] = share_TE.topk(choices_, -1);
  if (routing) routing->record(layer_, num_layers_, index_TK, share_TE, row_T);
  if (normalise_) share_TK = share_TK / share_TK.sum(-1, true);
  return {share_TK.to(logits_TE.scalar_type()), index_TK};
}

Tensor MoeMlp::apply_experts(const Tensor& x_ND, const std::vector<int64_t>& counts_E) const {
  return grouped_linear(swiglu(grouped_linear(x_ND, up_EFD_, counts_E)), down_EDF_, counts_E);
}

/// Sends rows sorted by expert to the ranks of ep that hold the experts, and brings what those make of them back to
/// their places.
Tensor MoeMlp::through_ep(const Tensor& x_ND, const Tensor& counts_E) const {
  const std::shared_ptr<Comm>& ep = groups_->ep;
  const int64_t ranks = ep->size(), own_experts = experts_ / ranks;
  const Tensor sent_RE = counts_E.view({ranks, own_experts}).contiguous();
  Tensor received_RE = at::empty_like(sent_RE);
  ep->all_to_all(received_RE, sent_RE, {std::vector<int64_t>(ranks, 1), std::vector<int64_t>(ranks, 1)});
  // One copy to the host tells both.
  const std::vector<int64_t> both = on_host(at::cat({sent_RE.sum(1), received_RE.sum(1), received_RE.sum(0)}));
  const auto end = both.begin() + ranks;
  const Splits splits{{both.begin(), end}, {end, end + ranks}};
  const std::vector<int64_t> counts(end + ranks, both.end());
  const int64_t received = sum(counts);
  const Tensor arrived = exchange_rows(x_ND, splits, ep);

  // They come by sender, then expert; an expert wants its own together.
  const auto options = counts_E.options();
  const Tensor expert_N =
      at::repeat_interleave(at::arange(own_experts, options).repeat({ranks}), received_RE.view({-1}), 0, received);
  const Tensor order = at::argsort(expert_N, /*stable=*/true, 0, false);
  Tensor place = at::empty_like(order);
  place.index_copy_(0, order, at::arange(received, options));
  const Tensor made = apply_experts(gather_rows(arrived, order, place.unsqueeze(1)), counts);
  return exchange_rows(gather_rows(made, place, order.unsqueeze(1)), {splits.receive, splits.send}, ep);
}

Tensor MoeMlp::forward(const Tensor& x_TD, const std::shared_ptr<Routing>& routing) const {
  const OwnRows own = own_rows(x_TD, *groups_);
  const Tensor row_T = packed_rows(routing.get(), own);
  const Choice choice = choose(own.x_TD, row_T, routing);
  Order order = sorted_by_expert(choice.index_TK, row_T, experts_);
  const bool alone = groups_->ep->size() == 1;
  const std::vector<int64_t> counts = on_host(order.counts_E);
  order.token_N = order.token_N.narrow(0, 0, sum(counts));  // what belongs to no token stands last
  const Tensor sent_ND = gather_rows(own.x_TD, order.token_N, order.place_TK);
  const Tensor back_ND = alone ? apply_experts(sent_ND, counts) : through_ep(sent_ND, order.counts_E);
  return all_rows(combine_rows(back_ND, choice.share_TK, order.token_N, order.place_TK), own, *groups_);
}

}  // namespace hanok
