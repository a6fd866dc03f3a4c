// Attention on packed rows through cuDNN's graph API. Private to attention.cpp; without cuDNN's headers
// attention_cudnn_absent.cpp takes its place.
//
// One plan serves every packing: segments are told by ragged offsets on the device, and the plan is built for maxima
// (number of segments, longest segment, rows) that are rounded up to powers. libtorch's own entry for packed rows
// builds its plan at every call, 40 ms of host time each.
#pragma once

#include "model/kernels/attention.h"

namespace hanok::attention_cudnn {

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
