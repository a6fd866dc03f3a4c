// One micro-batch: packed rows laid end to end, with everything the model needs to keep samples apart.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace hanok {

/// Where a sample lies in its micro-batch.
struct PlacedSample {
  int dataset = 0;
  int64_t index = 0;  // in the dataset
  std::string id;
  int64_t begin = 0, end = 0;        // tokens of the micro-batch
  int row = 0;                       // packed row of the micro-batch, from 0
  int num_choices = 0, answer = -1;  // position of the right choice as shown
  std::vector<int> permutation;  // evaluate with shuffled choices: shown position -> original choice; empty otherwise
};

/// Host tensors. T is the number of real tokens rounded up to pad_multiple, at least one multiple: the micro-batch of a
/// rank without rows is padding of weight 0, so that every rank runs the same operations.
struct Batch {
  Tensor tokens_T;        // int64
  Tensor targets_T;       // int64: the next token of the same sample where it is a label, else -100
  Tensor weight_T;        // f32: weight of that target (0 where there is none)
  Tensor position_3T;     // int64: temporal, height, width positions of M-RoPE, restarting at 0 in every sample
  Tensor row_starts;      // int32 [S + 1]: first token of each sample, then T; tail padding is a segment of its own
  Tensor pixels_PC;       // f32 [P, C]; [0, C] without pictures
  Tensor grid_I3;         // int64 [I, 3]: t, h, w in patches, a video being one row; rows of pixels_PC in this order
  Tensor vision_index_M;  // int64: token that receives each merged vision token, in the order of pixels_PC
  std::vector<PlacedSample> samples;
  double weight_sum = 0;   // of weight_T, in f64
  int64_t num_tokens = 0;  // real ones, without padding
  int64_t num_labels = 0;
};

/// A rank's share of data. dataio never learns about ranks.
struct Slice {
  int index = 0, count = 1;
};

}  // namespace hanok
