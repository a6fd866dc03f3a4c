#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/execution.h"
#include "model/layers/host_lane.h"

namespace hanok {

/// The layers of one forward, in order, some of which run again in the backward. Gradients have the same bits as
/// without: the second run builds the same graph of the same values. Collectives that run again do so in the same order
/// on every rank; those whose results are kept do not.
class LayerRuns {
 public:
  using Block = std::function<Tensor(const Tensor&)>;
  explicit LayerRuns(const Recompute& how) : how_(how) {}

  struct Layer {
    int64_t index;                       // global
    const std::vector<Tensor>& weights;  // every one that `run` uses; other tensors that it captures get no gradient
    bool ends_in_product = true;         // its last kept result is only added to something: no backward reads it
  };
  /// y = run(x). grads:  x, weights
  Tensor operator()(const Block& run, const Tensor& x, const Layer& layer);
  /// After the last layer. `backward_is_next`: else what lies on the device all the same goes to the host too.
  void finish(bool backward_is_next);

 private:
  Recompute how_;
  HostLane lane_;
};

}  // namespace hanok
