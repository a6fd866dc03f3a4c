#include "model/layers/moe.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "model/kernels/grouped_linear.h"
#include "model/kernels/order_rows.h"
#include "model/kernels/parcels.h"
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

/// Parcels and choices in them: to and from each rank of ep, and in all on each rank of etp.
struct Counts {
  Splits parcels;
  std::vector<int64_t> parcels_of_etp;
  int64_t choices = 0;  // on all ranks of etp
};

/// One copy to the host tells them all.
Counts exchange_counts(const Tensor& sent_R2, Comm& ep, Comm& etp) {
  const int64_t ranks = ep.size(), parts = etp.size();
  const std::vector<int64_t> one_each(ranks, 1);
  Tensor received_R2 = at::empty_like(sent_R2), of_etp_P2 = at::empty({parts, 2}, sent_R2.options());
  ep.all_to_all(received_R2, sent_R2, {one_each, one_each});
  etp.all_gather(of_etp_P2, received_R2.sum(0, /*keepdim=*/true));
  const Tensor host = on_host(at::cat({sent_R2, received_R2, of_etp_P2}));
  const int64_t* pair = host.const_data_ptr<int64_t>();
  Counts counts;
  for (int64_t r = 0; r < ranks; ++r) {
    counts.parcels.send.push_back(pair[2 * r]);
    counts.parcels.receive.push_back(pair[2 * (ranks + r)]);
  }
  for (int64_t p = 2 * ranks; p < 2 * ranks + parts; ++p) {
    counts.parcels_of_etp.push_back(pair[2 * p]);
    counts.choices += pair[2 * p + 1];
  }
  return counts;
}

}  // namespace

MoeMlp::MoeMlp(const BuildContext& ctx, const DecoderConfig& config, int64_t layer)
    : groups_(&ctx.groups()),
      deferred_(ctx.deferred()),
      held_(std::make_unique<WeightGradients>()),
      layer_(layer),
      experts_(config.experts),
      choices_(config.experts_per_token),
      normalise_(config.norm_topk),
      router_(ctx.in("router"), {.in = config.hidden, .out = config.experts}) {
  held_->defer(true);
  const BuildContext experts = ctx.in("experts");
  up_EFD_ = experts.in("up").param("weight",
                                   {.shape = {experts_, 2 * config.expert_ffn, config.hidden},
                                    .init = ctx.random(),
                                    .inner_dim = 1,
                                    .inner_segments = {{config.expert_ffn}, {config.expert_ffn}}});
  down_EDF_ = experts.in("down").param(
      "weight", {.shape = {experts_, config.hidden, config.expert_ffn}, .init = ctx.random_residual(), .inner_dim = 2});
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

Tensor MoeMlp::apply_experts(const Tensor& x_ND, const Tensor& ends_E, WeightGradients* deferred) const {
  const Tensor act_NF = swiglu(grouped_linear(x_ND, up_EFD_, ends_E, deferred));
  return grouped_linear(act_NF, down_EDF_, ends_E, deferred);
}

/// What this rank's experts make of parcels, a row each.
Tensor MoeMlp::open_parcels(const Tensor& parcels_MC, int64_t width, int64_t choices, WeightGradients* deferred) const {
  const int64_t own_experts = experts_ / groups_->ep->size();
  const RowOrder order = order_by_expert(experts_of_parcels(parcels_MC, width, choices_), Tensor(), own_experts);
  const Tensor slot_N = order.slot_N.narrow(0, 0, choices);
  const UnpackedParcels in = unpack_parcels(parcels_MC, width, slot_N, order.place_TK);
  return combine_rows(apply_experts(in.x_ND, order.ends_E, deferred), in.weight_MK, slot_N, order.place_TK);
}

/// What the backward of this layer has left so far; in a zero-bubble pipeline that leaves it once more.
void MoeMlp::make_held_gradients() const {
  const at::NoGradGuard no_grad;
  for (WeightGradients::Work& work : held_->take()) deferred_->deferring() ? deferred_->add(std::move(work)) : work();
}

Tensor MoeMlp::through_ranks(const Tensor& x_TD, const ExpertChoice& choice, const Tensor& row_T) const {
  const std::shared_ptr<Comm>&ep = groups_->ep, &etp = groups_->etp;
  const auto [rows, sent_R2] = order_parcels(choice.index_TK, row_T, experts_, ep->size());
  const Counts counts = exchange_counts(sent_R2, *ep, *etp);
  const Splits &there = counts.parcels, back{there.receive, there.send};
  const Tensor slot_M = rows.slot_N.narrow(0, 0, std::accumulate(there.send.begin(), there.send.end(), int64_t{0}));
  const Tensor packed_MC = pack_parcels(x_TD, choice.weight_TK, choice.index_TK, slot_M, rows.place_TK, experts_);
  // Parcels without a gradient send none back, and nothing would ask for what was held.
  const bool overlaps = deferred_ && deferred_->overlaps_exchanges() && ep->size() > 1 && packed_MC.requires_grad();
  std::function<void()> meanwhile;
  if (overlaps) meanwhile = [this] { make_held_gradients(); };
  WeightGradients* const deferred = overlaps ? held_.get() : deferred_;
  const Tensor arrived_MC = exchange_rows(packed_MC, there, ep, meanwhile);
  // Every rank of etp has some columns of the experts: all of them open the parcels of all, made equal in number by
  // empty ones, which no expert wants.
  const int64_t own = arrived_MC.size(0),
                most = *std::max_element(counts.parcels_of_etp.begin(), counts.parcels_of_etp.end());
  const Tensor even_MC = most > own ? at::constant_pad_nd(arrived_MC, {0, 0, 0, most - own}) : arrived_MC;
  const Tensor all_MC = gather_and_reduce_scatter(even_MC, etp);
  Tensor made_MD = reduce_scatter_and_gather(open_parcels(all_MC, x_TD.size(1), counts.choices, deferred), etp);
  if (most > own) made_MD = made_MD.narrow(0, 0, own);
  return sum_rows(exchange_rows(made_MD, back, ep), slot_M, rows.place_TK);
}

Tensor MoeMlp::alone(const Tensor& x_TD, const ExpertChoice& choice, const Tensor& row_T) const {
  const RowOrder order = order_by_expert(choice.index_TK, row_T, experts_);
  const Tensor made_ND = apply_experts(gather_rows(x_TD, order.slot_N, order.place_TK), order.ends_E, deferred_);
  return combine_rows(made_ND, choice.weight_TK, order.slot_N, order.place_TK);
}

Tensor MoeMlp::forward(const Tensor& x_TD, const std::shared_ptr<Routing>& routing) const {
  const OwnRows own = own_rows(x_TD, *groups_);
  const Tensor row_T = packed_rows(routing.get(), own);
  const ExpertChoice choice = choose(own.x_TD, row_T, routing);
  const Tensor y_TD = ends_in_exchange() ? through_ranks(own.x_TD, choice, row_T) : alone(own.x_TD, choice, row_T);
  return all_rows(y_TD, own, *groups_);
}

}  // namespace hanok
