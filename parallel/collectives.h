// Conjugate pairs: the only autograd code that communicates. Each is the identity on a group of size 1.
#pragma once

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
Tensor exchange_rows(const Tensor& x, const Splits& splits, const std::shared_ptr<Comm>& group);

}  // namespace hanok
