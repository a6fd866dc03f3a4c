#pragma once

#include "configs/schema/config.h"
#include "model/kernels/choose_experts.h"
#include "model/layers/linear.h"
#include "model/layers/routing.h"

namespace hanok {

class SideStream;

/// A feed-forward part of E experts: y_t = sum over the K experts with the largest shares of share * down(silu(gate) *
/// up). Shares are the softmax of the router over all experts, in f32 (f64 for f64), of the chosen ones scaled to sum
/// to 1 where the config says so, then rounded to the dtype of x.
///
/// Where tokens go: rows are always cut over tp (without sequence parallelism each rank takes its part of the equal
/// rows, and the results are gathered), so that no token is sent twice. A token travels to a rank of ep once, however
/// many of its experts that rank holds, with its choices (kernels/parcels.h); the rank adds up what its experts make of
/// it, and one row travels back. Split sizes are those of the routing, counted and exchanged before; no token is
/// dropped, and padding is sent nowhere (its y is 0). Where the width of an expert is cut over etp, those ranks gather
/// each other's parcels, and sum what their columns make of them. In a backward with ep, weight gradients of experts
/// may be made while the gradients of parcels travel (model/weight_gradients.h). Gradients of experts are sums over the
/// tokens that met here; the ranks of expert_grad add theirs. On a GPU the host waits for the device once a layer with
/// ep or etp, for the sizes, which are asked for again where it is recomputed; and for the ends of each product that is
/// not in bf16. source: HF Qwen3VLMoeTextSparseMoeBlock (transformers 5.17)
class MoeMlp {
 public:
  MoeMlp(const BuildContext& ctx, const DecoderConfig& config, int64_t layer);
  /// x_TD in sequence layout -> the same. `routing` may be null: then every row is a token, and nothing is recorded.
  Tensor forward(const Tensor& x_TD, const std::shared_ptr<Routing>& routing) const;
  /// Whether rows come back from other ranks at its end, summed up: no backward reads what came.
  bool ends_in_exchange() const { return groups_->ep->size() * groups_->etp->size() > 1; }

 private:
  ExpertChoice choose(const Tensor& x_TD, const Tensor& row_T, const std::shared_ptr<Routing>& routing) const;
  Tensor apply_experts(const Tensor& x_ND, const Tensor& ends_E, WeightGradients* deferred) const;
  Tensor open_parcels(const Tensor& parcels_MC, int64_t width, int64_t choices, WeightGradients* deferred) const;
  void make_held_gradients() const;
  Tensor through_ranks(const Tensor& x_TD, const ExpertChoice& choice, const Tensor& row_T) const;
  Tensor alone(const Tensor& x_TD, const ExpertChoice& choice, const Tensor& row_T) const;

  const Groups* groups_;
  WeightGradients* deferred_;
  std::unique_ptr<WeightGradients> held_;  // of one backward, until rows travel
  int64_t layer_, experts_, choices_;
  bool normalise_;
  Linear router_;
  Tensor up_EFD_, down_EDF_;  // of this rank's experts; gate and up are one weight
};

}  // namespace hanok
