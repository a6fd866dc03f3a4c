// Attention on packed rows through cuDNN's graph API. Private to attention.cpp, but for its sizes; without cuDNN's
// headers attention_cudnn_absent.cpp takes its place.
//
// One plan serves every packing: segments are told by ragged offsets on the device, and the plan is built for maxima
// (number of segments, longest segment, rows) that are rounded up to powers. libtorch's own entry for packed rows
// builds its plan at every call, 40 ms of host time each.
#pragma once

#include <algorithm>
#include <bit>

#include "model/kernels/attention.h"

namespace hanok::attention_cudnn {

/// Maxima of a plan are powers of two, so that a run needs a handful of plans.
inline int64_t round_up(int64_t value, int64_t least) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max(value, least))));
}
/// Rows that the plan, and with it the workspace of a backward, is made for.
inline int64_t planned_rows(int64_t rows) {
  return round_up(rows, 1024);
}

std::shared_ptr<RaggedOffsets> make_ragged_offsets();

/// Whether this build, device, dtype and width have a plan (built here when it is the first of its kind, 0.05 to 1 s).
bool runs(const Tensor& qkv_TX, const Segments& segments, const AttentionSizes& sizes);

/// Where runs(): -> out_TX [T, N H], log_sum_TN [T, N] f32
std::pair<Tensor, Tensor> forward(const Tensor& qkv_TX, const Segments& segments, const AttentionSizes& sizes);
/// -> gradient of qkv_TX
Tensor backward(const Tensor& dout_TX,
                const Tensor& qkv_TX,
                const Tensor& out_TX,
                const Tensor& log_sum_TN,
                const Segments& segments,
                const AttentionSizes& sizes);

}  // namespace hanok::attention_cudnn
