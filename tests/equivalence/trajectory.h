// Twenty optimizer steps on a layout, and their comparison with one rank.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/vlm.h"
#include "tests/equivalence/material.h"

namespace hanok {

struct TrainingCase {
  std::string name;
  bool tied = true;
  std::vector<std::string> trainable = {"**"};
  std::vector<ParamGroupConfig> groups;
  double clip_norm = 0.5;  // below the norms that occur
  at::ScalarType dtype = at::kFloat;
  bool experts = false;
  int64_t rows_per_micro_batch = 1;
  Recompute recompute = {};
};
/// All train with a tied head; and the tower frozen, the head its own, the connector at three times the rate.
std::vector<TrainingCase> training_cases();
/// All of the model with experts train. In f64: where two experts' shares are nearly equal, the rounding of f32 decides
/// between them otherwise on every layout, and a token sent elsewhere is another model.
TrainingCase expert_case();

/// Deliberate faults.
struct Fault {
  bool forget_replicated_sums = false;  // gradients of whole weights are not summed over tp
  bool forget_expert_sums = false;      // gradients of experts stay with the ranks that made them
  bool forget_twins = false;            // nor those of a tied table over the two ends of a pipeline
  bool forget_balance = false;          // the first stage of a pipeline knows no balancing loss
  bool forget_to_await = false;         // weights are read before other ranks' parts of them are there
};

struct Trajectory {
  std::vector<double> losses, norms;      // with experts: losses with the balancing loss
  std::map<std::string, Tensor> weights;  // local pieces at the end
  double largest_update = 0;              // of any local weight since the start
  double largest_gradient = 0;            // of any element of this rank's shard after clipping
  double typical_gradient = 0;            // root mean square likewise, of the step where it is largest
};
/// `layout`: what its groups do not say, the way of context parallelism and the schedule of a pipeline.
Trajectory train(const TrainingCase& what,
                 const Groups& groups,
                 at::Device device,
                 const ParallelConfig& layout = {},
                 const Fault& fault = {});

/// The piece of a global tensor that this rank holds.
Tensor local_piece(const Tensor& global, const ParamSpec& spec, const Groups& groups);

struct Agreement {
  bool ok = true;
  double loss_error = 0, loss_tolerance = 0;  // largest
  double weight_error = 0, weight_tolerance = 0;
  double mean_residual = 0, mean_tolerance = 0;  // of all local weights
  std::string worst;                             // parameter
  std::string text() const;
  void include(const Agreement& other);  // keeps the larger errors
};
/// Losses and final weights of this rank against those of one rank.
///
/// Losses: sums over the T tokens of a step, c eps sqrt(T) max|loss|.
/// Weights: a gradient is a sum over the T tokens of a step, so it is known within dg = c eps sqrt(T) |g|. AdamW moves
/// a weight by r m / (sqrt(v) + e); whatever the sizes, a change of dg in the gradients moves that by at most r dg / e,
/// and twenty steps by 20 r dg / e. |g|: the largest element for the largest error, the root mean square for the mean
/// one. The tests set e = 1e-3: with e = 1e-8 a gradient that is zero but for rounding, like a key bias's, would be
/// blown up to full steps.
Agreement compare(const Trajectory& got, const Trajectory& one_rank, const TrainingCase& what, const Groups& groups);

}  // namespace hanok
