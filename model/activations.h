// What a micro-batch makes a rank hold from its forward to its backward, counted from the shapes without running it.
#pragma once

#include <vector>

#include "configs/schema/config.h"
#include "model/execution.h"
#include "parallel/param.h"

namespace hanok {

/// What the attention core keeps, and how much room its backward takes.
enum class AttentionStore {
  kOwn,        // our functions: the CPU's loops
  kCudnn,      // the same tensors; the backward of the graph takes room: see activations.cpp
  kFlash,      // libtorch's flash: the same tensors
  kEfficient,  // libtorch's memory-efficient: also keys and values repeated for every query head
};

/// What the bytes depend on beside the shapes: every operation is a function of ours that keeps the same tensors on
/// every device; attention and the chunks of logits differ.
struct KernelSet {
  bool on_gpu = false;
  AttentionStore attention = AttentionStore::kOwn;
  ContextWay context = ContextWay::kAuto;
};

/// A layer that runs again can keep what attention gave; libtorch's own kernels run again, but over a ring or on
/// gathered keys and values. `cp`: ranks over which rows are cut.
bool keeps_attention(const KernelSet& kernels, int64_t cp);

/// One micro-batch of one rank, padding included; with context parallelism its rows and its patches.
struct MicroBatch {
  int64_t tokens = 0;          // packed rows laid end to end
  int64_t labels = 0;          // of them
  int64_t patches = 0;         // of all pictures
  int64_t vision_tokens = 0;   // placeholders: patches / merge^2
  bool trains_before = false;  // on a pipeline: a weight of an earlier stage trains, so that gradients pass this one
};

/// Bytes on one rank.
struct ActivationBytes {
  double input = 0;               // tokens, positions, pixels
  double tower = 0;               // kept by autograd, as are the next three
  double connector = 0;           //
  double decoder = 0;             // rotary tables included
  std::vector<double> sublayers;  // of decoder, those of each sublayer (model/pieces.h) of the whole model
  double head = 0;                // final hidden states, gradient of the labelled ones
  double stream = 0;              // what a pipeline stage hands on to the next
  double on_host = 0;             // what recomputed layers keep in host memory; not in kept()
  // Not all at once: each is gone before the next phase.
  double redone_block = 0;         // what the largest recomputed block keeps while its backward runs
  double logits = 0;               // chunks of logits and gradients of the loss
  double block_gradients = 0;      // of activations, in the backward of the largest block
  double attention_workspace = 0;  // of the attention backward
  double peak = 0;                 // input, activations and what is computed on them, when they take the most
  double kept() const { return tower + connector + decoder + head + stream; }
  /// Share of decoder that lies in sublayers [first, last); of their number where nothing is kept.
  double decoder_share(int64_t first, int64_t last) const;
};

/// `params`: of a model on these groups (meta tensors will do), or of one stage of it; local shapes and `trainable` are
/// read.
/// Tensors are counted once however many operations keep them; weights, and what is as small as a few numbers a
/// segment, are not counted.
/// source: the autograd functions of model/kernels and libtorch's derivatives.yaml, in the order of the forward
ActivationBytes activation_bytes(const ModelConfig& config,
                                 const ParamTable& params,
                                 const Groups& groups,
                                 const MicroBatch& batch,
                                 const Recompute& recompute,
                                 KernelSet kernels);

/// Ranks of `ranks`, with as many experts each, that hold any of a token's: where every choice is equally likely.
double ranks_of_token(const DecoderConfig& config, int64_t ranks);

}  // namespace hanok
