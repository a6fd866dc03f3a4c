// Attention of some query rows to some key rows, with what it takes to put partial results together. No autograd: the
// backward is a function of its own (layers/context_attention.cpp calls both).
#pragma once

#include <memory>
#include <vector>

#include "model/kernels/attention.h"

namespace hanok {

/// Query rows [q_begin, q_end) against key rows [k_begin, k_end).
struct AttentionPiece {
  int64_t q_begin = 0, q_end = 0, k_begin = 0, k_end = 0;
  int64_t queries() const { return q_end - q_begin; }
  int64_t keys() const { return k_end - k_begin; }
};

struct PieceLevels;

/// Rising pieces, no query row in two of them, none without a query. Key ranges of different k_begin do not meet.
struct AttentionPieces {
  std::vector<AttentionPiece> list;
  bool causal = false;  // bottom-right: the last query sees all keys of its piece, the one before it all but one, ...
  std::shared_ptr<PieceLevels> levels;  // what a GPU wants to know, made at first use and shared by all layers
};
/// errors: kShape unless the pieces are as said above and, when causal, have a key for every query
AttentionPieces make_pieces(std::vector<AttentionPiece> list, bool causal);

/// What queries make of the keys of their pieces; rows without a piece: zeros, and -inf.
struct PartialAttention {
  Tensor out_TX;      // [Tq, N H], normalised over the keys seen
  Tensor log_sum_NT;  // [N, Tq] f32 (f64): log sum exp of the scores
};

/// What queries q_TX [Tq, N H] make of no key at all.
PartialAttention attention_to_nothing(const Tensor& q_TX, const AttentionSizes& sizes);

/// shapes: q_TX [Tq, N H] and kv_TX [Tk, 2 K H] = [k | v] (rows may be strided)
/// On the CPU the result of a query row depends on nothing but its own query and the keys it sees: bit for bit the same
/// as in segment_attention.
/// errors: kConfig if the chosen kernel cannot run here
PartialAttention attend(const Tensor& q_TX,
                        const Tensor& kv_TX,
                        const AttentionPieces& pieces,
                        const AttentionSizes& sizes,
                        AttentionKernel kernel);

/// Adds the gradients of q and of kv to dq_TX and dkv_TX (f32; f64 for f64). out and log_sum: over all keys that a
/// query row sees anywhere, not only in these pieces.
void attend_backward(const Tensor& dout_TX,
                     const Tensor& q_TX,
                     const Tensor& kv_TX,
                     const PartialAttention& whole,
                     const AttentionPieces& pieces,
                     const AttentionSizes& sizes,
                     AttentionKernel kernel,
                     Tensor& dq_TX,
                     Tensor& dkv_TX);

/// sum over both sets of keys; `total` is changed in place. A row that neither has seen stays zero and -inf.
void merge_attention(PartialAttention& total, const PartialAttention& part);

}  // namespace hanok
