// Conjugate pairs: the only autograd code that communicates. Each is the identity on a group of size 1.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/comm.h"

namespace hanok {

/// forward: x            backward: all-reduce of the gradient  (input of a column-parallel layer)
Tensor copy_to_group(const Tensor& x, const std::shared_ptr<Comm>& group);
/// forward: all-reduce   backward: identity                    (output of a row-parallel layer)
Tensor sum_over_group(const Tensor& x, const std::shared_ptr<Comm>& group);
/// forward: keep this rank's block of dim 0   backward: all-gather. Rows must be divisible by the group.
Tensor split_to_group(const Tensor& x, const std::shared_ptr<Comm>& group);
/// forward: all-gather of dim 0               backward: keep this rank's block (every rank used the whole result alike)
Tensor gather_and_split(const Tensor& x, const std::shared_ptr<Comm>& group);
/// forward: all-gather of dim 0               backward: reduce-scatter (each rank used the whole result differently)
Tensor gather_and_reduce_scatter(const Tensor& x, const std::shared_ptr<Comm>& group);
/// forward: reduce-scatter of dim 0           backward: all-gather
Tensor reduce_scatter_and_gather(const Tensor& x, const std::shared_ptr<Comm>& group);
/// forward: all-to-all of rows                backward: the reverse all-to-all
/// `meanwhile`: called in the backward when the reverse has begun; on a GPU what it gives the current stream runs
/// beside that.
Tensor exchange_rows(const Tensor& x,
                     const Splits& splits,
                     const std::shared_ptr<Comm>& group,
                     const std::function<void()>& meanwhile = {});

/// The rows of all ranks, one rank's after the other's. No gradient.
Tensor gathered(const Tensor& x, Comm& group);

/// What a layer makes of its rows and of blocks of rows that the other ranks hold: attention of queries to keys and
/// values.
class BlockWork {
 public:
  virtual ~BlockWork() = default;
  /// Adds what `block` gives to `partial`, which is empty before the first. `source`: the rank whose block it is; -1:
  /// the blocks of all ranks, one after the other.
  virtual void forward(int source, const Tensor& x, const Tensor& block, std::vector<Tensor>& partial) const = 0;
  /// partial results of all blocks -> the result. `partial` is left with what the backward wants besides x and the
  /// result.
  virtual Tensor finish(const Tensor& x, std::vector<Tensor>& partial) const = 0;
  /// Adds to the gradients of x and of the block, which are zeros (f32; f64 for f64) at first.
  virtual void backward(int source,
                        const Tensor& x,
                        const Tensor& block,
                        const Tensor& y,
                        const Tensor& dy,
                        const std::vector<Tensor>& kept,
                        Tensor& dx,
                        Tensor& dblock) const = 0;
};

/// forward: all-gather of the blocks, then the work   backward: all-gather again, the work, reduce-scatter
/// Between the two no rank keeps more than its own block.
Tensor work_on_gathered(const Tensor& x,
                        const Tensor& block,
                        const std::shared_ptr<const BlockWork>& work,
                        const std::shared_ptr<Comm>& group);
/// The same with blocks that travel: each hop passes them to the next rank while the work is done on the one that is
/// here (on a GPU; other back-ends pass, then work). The gradients of a block travel with it and are added up in f32.
Tensor work_around_ring(const Tensor& x,
                        const Tensor& block,
                        const std::shared_ptr<const BlockWork>& work,
                        const std::shared_ptr<Comm>& group);

}  // namespace hanok
