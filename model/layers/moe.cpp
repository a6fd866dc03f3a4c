#include "model/layers/moe.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <numeric>

#include "base/error.h"
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

/// What is on the device, on the host: the one time in a layer that the host waits for the device.
Tensor on_host(const Tensor& x) {
  if (x.is_cpu()) return x;
  const Tensor host = at::empty(x.sizes(), x.options().device(at::kCPU).pinned_memory(true));
  host.copy_(x, /*non_blocking=*/true);
  c10::Event copied(x.device().type());
  copied.record(c10::impl::VirtualGuardImpl(x.device().type()).getStream(x.device()));
  copied.synchronize();
  return host;
}

/// Sums of the rows of a host tensor.
std::vector<int64_t> row_sums(const Tensor& x_RE) {
  const auto row = [&](int64_t r) { return x_RE.const_data_ptr<int64_t>() + r * x_RE.size(1); };
  std::vector<int64_t> sums;
  for (int64_t r = 0; r < x_RE.size(0); ++r) sums.push_back(std::accumulate(row(r), row(r + 1), int64_t{0}));
  return sums;
}

int64_t sum(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace

MoeMlp::MoeMlp(const BuildContext& ctx, const DecoderConfig& config, int64_t layer)
    : groups_(&ctx.groups()),
      deferred_(ctx.deferred()),
      layer_(layer),
      experts_(config.experts),
      choices_(config.experts_per_token),
      normalise_(config.norm_topk),
      router_(ctx.in("router"), {.in = config.hidden, .out = config.experts}) {
  const BuildContext experts = ctx.in("experts");
  up_EFD_ = experts.in("up").param("weight",
                                   {.shape = {experts_, 2 * config.expert_ffn, config.hidden},
                                    .init = ctx.random(),
                                    .inner_dim = 1,
                                    .inner_segments = {{config.expert_ffn}, {config.expert_ffn}}});
  down_EDF_ = experts.in("down").param(
      "weight", {.shape = {experts_, config.hidden, config.expert_ffn}, .init = ctx.random(), .inner_dim = 2});
}

ExpertChoice MoeMlp::choose(const Tensor& x_TD, const Tensor& row_T, const std::shared_ptr<Routing>& routing) const {
  RoutedTokens tokens{.row_T = row_T};
  if (routing) {
    tokens.assigned_RE = routing->counts_of(layer_);
    tokens.gradient = [routing] { return routing->coefficient != 0 ? routing->gradient_RE : Tensor(); };
  }
  ExpertChoice choice = choose_experts(router_.forward(x_TD), choices_, normalise_, tokens);
  if (tokens.assigned_RE.defined()) routing->add_shares(layer_, choice.share_TE, row_T);
  return choice;
}

Tensor MoeMlp::apply_experts(const Tensor& x_ND, const Tensor& ends_E) const {
  const bool is_sent_back = groups_->ep->size() * groups_->etp->size() > 1;
  const Tensor act_NF = swiglu(grouped_linear(x_ND, up_EFD_, ends_E, deferred_));
  return grouped_linear(act_NF, down_EDF_, ends_E, deferred_, is_sent_back);
}

/// Rows that came by sender and expert, to each expert its own together, and back to where they came.
Tensor MoeMlp::through_own(const Tensor& x_ND, const Tensor& received_RE) const {
  const std::shared_ptr<Comm>& etp = groups_->etp;
  if (etp->size() == 1) {
    const RowOrder order = order_arrived(received_RE, x_ND.size(0));
    const Tensor made_ND = apply_experts(gather_rows(x_ND, order.slot_N, order.place_TK), order.ends_E);
    return gather_rows(made_ND, order.place_TK.view({-1}), order.slot_N.unsqueeze(1));
  }
  // Every rank of etp has some columns of the experts: all of them take the rows of all, made equal in number by rows
  // of one more sender for one more expert, which stands behind the others.
  const int64_t parts = etp->size(), ranks = received_RE.size(0), experts = received_RE.size(1);
  Tensor all_NE = at::empty({parts * ranks, experts}, received_RE.options());
  etp->all_gather(all_NE, received_RE);
  const Tensor all_PRE = all_NE.view({parts, ranks, experts});
  const Tensor rows_P = all_PRE.sum({1, 2}), most = rows_P.max();
  const int64_t rows = on_host(most.view({1})).const_data_ptr<int64_t>()[0], own_rows = x_ND.size(0);
  Tensor counts = at::constant_pad_nd(all_PRE, {0, 1, 0, 1});
  counts.select(1, ranks).select(1, experts).copy_(most - rows_P);
  const Tensor even_ND = at::constant_pad_nd(x_ND, {0, 0, 0, rows - own_rows});
  const Tensor x_all = gather_and_reduce_scatter(even_ND, etp);
  const RowOrder order = order_arrived(counts.view({parts * (ranks + 1), experts + 1}), parts * rows);
  const Tensor made =
      apply_experts(gather_rows(x_all, order.slot_N, order.place_TK), order.ends_E.narrow(0, 0, experts));
  const Tensor y_all = gather_rows(made, order.place_TK.view({-1}), order.slot_N.unsqueeze(1));
  return reduce_scatter_and_gather(y_all, etp).narrow(0, 0, own_rows);
}

/// Sends rows sorted by expert to the ranks of ep that hold the experts, and brings what those make of them back to
/// their places; `order` is left with the rows that were sent.
Tensor MoeMlp::through_ep(const Tensor& x_TD, RowOrder& order) const {
  const std::shared_ptr<Comm>& ep = groups_->ep;
  const int64_t ranks = ep->size(), own_experts = experts_ / ranks;
  // Rows sent to and received from each expert of each rank; one copy to the host tells both.
  const Tensor counts_2RE = at::empty({2, ranks, own_experts}, order.slot_N.options());
  const Tensor sent_RE = counts_2RE[0];
  Tensor received_RE = counts_2RE[1];
  sent_RE.view({-1}).copy_(order.ends_E);
  sent_RE.view({-1}).narrow(0, 1, experts_ - 1).sub_(order.ends_E.narrow(0, 0, experts_ - 1));
  ep->all_to_all(received_RE, sent_RE, {std::vector<int64_t>(ranks, 1), std::vector<int64_t>(ranks, 1)});
  const Tensor host_2RE = on_host(counts_2RE);
  const Splits splits{row_sums(host_2RE[0]), row_sums(host_2RE[1])};

  order.slot_N = order.slot_N.narrow(0, 0, sum(splits.send));
  const Tensor arrived_ND = exchange_rows(gather_rows(x_TD, order.slot_N, order.place_TK), splits, ep);
  return exchange_rows(through_own(arrived_ND, received_RE), {splits.receive, splits.send}, ep);
}

Tensor MoeMlp::forward(const Tensor& x_TD, const std::shared_ptr<Routing>& routing) const {
  const OwnRows own = own_rows(x_TD, *groups_);
  const Tensor row_T = packed_rows(routing.get(), own);
  const ExpertChoice choice = choose(own.x_TD, row_T, routing);
  RowOrder order = order_by_expert(choice.index_TK, row_T, experts_);
  const Tensor made_ND = groups_->ep->size() * groups_->etp->size() == 1
                             ? apply_experts(gather_rows(own.x_TD, order.slot_N, order.place_TK), order.ends_E)
                             : through_ep(own.x_TD, order);
  return all_rows(combine_rows(made_ND, choice.weight_TK, order.slot_N, order.place_TK), own, *groups_);
}

}  // namespace hanok
