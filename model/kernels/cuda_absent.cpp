// In builds without nvcc: cuda_call() has refused every tensor on a GPU before one of these is reached.
#include <cassert>

#include "model/kernels/choose_experts_cuda.h"
#include "model/kernels/gelu_tanh_cuda.h"
#include "model/kernels/grouped_linear_cuda.h"
#include "model/kernels/interpolate_rows_cuda.h"
#include "model/kernels/layer_norm_cuda.h"
#include "model/kernels/lookup_rows_cuda.h"
#include "model/kernels/order_rows_cuda.h"
#include "model/kernels/parcels_cuda.h"
#include "model/kernels/qk_rope_cuda.h"
#include "model/kernels/rms_norm_cuda.h"
#include "model/kernels/route_rows_cuda.h"
#include "model/kernels/scatter_rows_cuda.h"
#include "model/kernels/sum_by_row_cuda.h"
#include "model/kernels/swiglu_cuda.h"
#include "model/kernels/vocab_softmax_cuda.h"

namespace hanok {

void launch(const ChooseExperts&) {
  assert(false);
}
void launch(const ChooseExpertsBackward&) {
  assert(false);
}
void launch(const GeluTanhForward&) {
  assert(false);
}
void launch(const GeluTanhBackward&) {
  assert(false);
}
void launch(const AddExpertShares&) {
  assert(false);
}
void launch(const InterpolateRowsForward&) {
  assert(false);
}
void launch(const LayerNormForward&) {
  assert(false);
}
void launch(const LayerNormBackward&) {
  assert(false);
}
void launch(const LookupRowsForward&) {
  assert(false);
}
void launch(const OrderByExpert&) {
  assert(false);
}
void launch(const CountParcels&) {
  assert(false);
}
void launch(const WriteNotes&) {
  assert(false);
}
void launch(const CollectNotes&) {
  assert(false);
}
void launch(const ReadExperts&) {
  assert(false);
}
void launch(const QkRopeForward&) {
  assert(false);
}
void launch(const QkRopeBackward&) {
  assert(false);
}
void launch(const RmsNormForward&) {
  assert(false);
}
void launch(const RmsNormBackward&) {
  assert(false);
}
void launch(const SpreadRows&) {
  assert(false);
}
void launch(const CollectRows&) {
  assert(false);
}
void launch(const WeightOfRows&) {
  assert(false);
}
void launch(const InvertIndex&) {
  assert(false);
}
void launch(const ScatterRows&) {
  assert(false);
}
void launch(const SumByRow&) {
  assert(false);
}
void launch(const SwiGluForward&) {
  assert(false);
}
void launch(const SwiGluBackward&) {
  assert(false);
}
void launch(const VocabRowStats&) {
  assert(false);
}
void launch(const VocabGradient&) {
  assert(false);
}
int64_t norm_partials(CudaType, int64_t, int64_t) {
  return 0;
}
int64_t order_blocks(int64_t, int64_t) {
  return 0;
}
int64_t qk_rope_partials(int64_t) {
  return 0;
}
int64_t sum_by_row_partials(int64_t) {
  return 0;
}

}  // namespace hanok
