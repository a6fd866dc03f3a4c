// Operations over a group that travel beside the work of the current stream.
#pragma once

#include "parallel/comm.h"
#include "parallel/side_stream.h"

namespace hanok {

/// An operation that was begun. On a GPU it runs on the side stream, after all that the current one was given before
/// the call, while that goes on with what it is given next; on a CPU it is done. Nothing else is asked of the group on
/// another stream until arrived(): its operations have one order. Holds what the operation reads and writes.
class Underway {
 public:
  /// x [n, ...] -> [size * n, ...]
  static Underway gather(const Tensor& x, Comm& group, SideStream& side);
  /// x [size * n, ...] -> own sums [n, ...]. errors: kShape if rows are not divisible by the group
  static Underway reduce_scatter(const Tensor& x, Comm& group, SideStream& side);
  /// The same into `own`, contiguous [n, ...].
  static Underway reduce_scatter(const Tensor& x, const Tensor& own, Comm& group, SideStream& side);
  /// Rows to and from each rank.
  static Underway exchange(const Tensor& x, const Splits& splits, Comm& group, SideStream& side);
  /// The result, which later work of the current stream sees.
  Tensor arrived();

 private:
  template <class Operation>
  Underway(const Tensor& in, const Tensor& out, SideStream& side, const Operation& operation);

  Tensor in_, out_;  // of the current stream's memory: let go once that has waited
  SideStream::Mark done_;
};

}  // namespace hanok
