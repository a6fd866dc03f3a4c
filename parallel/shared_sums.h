// Gradients that several ranks hold of the same weight besides those of its grad group.
#pragma once

#include <vector>

#include "parallel/groups.h"
#include "parallel/param.h"

namespace hanok {

/// Sums of partial gradients over tp, of replicated parts over the ranks of tp that hold them, and of tied weights over
/// the two stages of a pipeline that do.
class SharedSums {
 public:
  /// `grads`: by index in the table; undefined for frozen ones. errors: kShape for replicated experts
  SharedSums(const ParamTable& params, const Groups& groups, const std::vector<Tensor>& grads);
  /// In place. Collective over tp and pp.
  void sum();

 private:
  /// A part of one gradient that several ranks of tp hold together. Slots: one per set of ranks that share it; a rank
  /// adds to its own slot and leaves zeros in the others, so that one all-reduce over tp sums within every set.
  struct TpSum {
    Tensor grad;
    int slot = 0, slots = 1;
    int64_t elements() const { return slots * grad.numel(); }
  };
  struct Twin {
    Tensor grad;
    int stage = 0;
  };
  void sum_over_tp();
  void sum_over_twins();

  std::shared_ptr<Comm> tp_, pp_;
  std::vector<TpSum> tp_sums_;
  std::vector<Twin> twins_;
};

}  // namespace hanok
