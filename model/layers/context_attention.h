// Attention when the rows of a micro-batch lie on several ranks of cp.
#pragma once

#include "model/execution.h"
#include "model/kernels/attention_pieces.h"
#include "model/row_cut.h"
#include "parallel/groups.h"

namespace hanok {

/// What the layers know of the rows of other ranks: made once a micro-batch, shared by all of them.
struct ContextRows {
  std::shared_ptr<Comm> group;
  ContextWay way = ContextWay::kGather;
  AttentionKernel kernel = AttentionKernel::kAuto;
  Tensor order_T;                        // where row t of the micro-batch lies when the ranks' rows are laid end to end
  Tensor inverse_T;                      // and back
  AttentionPieces gathered;              // kGather, kAuto: own queries against the keys of their samples
  std::vector<AttentionPieces> of_rank;  // kRing: own queries against the keys of each rank
  Segments all;                          // kHeads, kAuto: the samples
};

/// The segments of causal attention over the samples of a micro-batch. Cut rows: with what it takes to meet those of
/// the other ranks. shapes: row_starts int32 [S + 1], host, of all rows; `rows`: those of this rank errors: kShape if
/// rows, starts and cut do not fit each other
Segments make_row_segments(const Tensor& row_starts,
                           const RowCut& cut,
                           int64_t rows,
                           at::Device device,
                           const Execution& execution,
                           const Groups& groups);

/// Causal segment_attention() over the rows of all ranks, of which this one gives and gets its own.
///   gather: keys and values are all-gathered. On the CPU bit for bit what one rank computes.
///   ring:   keys and values travel around the group; what they give is merged by log-sums, in f32.
///   heads:  each rank gets all rows of its share of the heads, and gives the results back. Key/value heads fewer than
///           the ranks are repeated.
///   auto:   heads on a GPU where they can be dealt, for whole samples go through the fastest kernel; else gather.
/// Between forward and backward nothing of other ranks is kept but with heads.
/// errors: kConfig if heads cannot be dealt to the ranks
/// grads: qkv_TX
/// source: arXiv 2310.01889 (ring), arXiv 2309.14509 (heads)
Tensor context_attention(const Tensor& qkv_TX, int64_t num_heads, int64_t num_kv_heads, const ContextRows& context);

}  // namespace hanok
