#include "model/kernels/attention_cudnn.h"

#include <ATen/Context.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <cudnn_frontend.h>

#include <map>
#include <mutex>
#include <tuple>

#include "base/error.h"
#include "base/log.h"
#include "base/upload.h"

namespace hanok {

/// Offsets and lengths of the segments as cuDNN reads them, padded with empty segments to a plan's maximum.
struct RaggedOffsets {
  int64_t slots = 0;
  Tensor starts, lengths;            // int32 [slots + 1], [slots]
  std::map<int64_t, Tensor> scaled;  // starts * elements of a row, by elements

  void fit(const Segments& segments, int64_t wanted_slots) {
    if (slots == wanted_slots) return;
    const int64_t count = segments.starts.size(0) - 1, rows = segments.starts[count].item<int>();
    const Tensor host = at::full({wanted_slots + 1}, rows, at::kInt);
    host.narrow(0, 0, count + 1).copy_(segments.starts);
    starts = upload(host, segments.device_starts.device());
    lengths = upload(host.diff(), starts.device());
    scaled.clear();
    slots = wanted_slots;
  }
  void* offsets(int64_t elements) {
    Tensor& found = scaled[elements];
    if (!found.defined()) found = starts * static_cast<int>(elements);
    return found.data_ptr();
  }
};

namespace attention_cudnn {
namespace {

namespace fe = cudnn_frontend;

/// Names of a graph's tensors.
enum Id : int64_t {
  kQ = 1,
  kK,
  kV,
  kOut,
  kLogSum,
  kDout,
  kDq,
  kDk,
  kDv,
  kRowOffset,
  kOutOffset,
  kHeadOffset,
  kSumOffset,
  kLength
};

/// What a plan depends on; maxima are rounded up (round_up).
struct PlanKey {
  int64_t device, slots, longest, rows, heads, kv_heads, width;
  bool causal, deterministic;
  at::ScalarType dtype;
  auto operator<=>(const PlanKey&) const = default;

  /// Keys and values of several query heads: cuDNN then adds up gradients of dk and dv per query head, f32, in a
  /// workspace with the strides of dk and dv times the query heads of a pair. In rows of qkv most of that is gaps
  /// (13.5 times the queries in f32 with four heads to a pair, 3.5 times without the gaps).
  bool has_shared_heads() const { return kv_heads < heads; }
};

PlanKey key_of(const Tensor& qkv, const Segments& segments, const AttentionSizes& sizes) {
  return {.device = qkv.get_device(),
          .slots = round_up(segments.starts.size(0) - 1, 8),
          .longest = round_up(segments.longest, 128),
          .rows = planned_rows(qkv.size(0)),
          .heads = sizes.heads,
          .kv_heads = sizes.kv_heads,
          .width = sizes.width,
          .causal = sizes.causal,
          .deterministic = at::globalContext().deterministicAlgorithms(),
          .dtype = qkv.scalar_type()};
}

struct Plan {
  fe::graph::Graph forward, backward;
  int64_t forward_workspace = 0, backward_workspace = 0;
};

/// Handles may not be shared between threads, and the backward runs in one of libtorch's.
cudnnHandle_t handle_of(int64_t device) {
  struct Handle {
    cudnnHandle_t value = nullptr;
    ~Handle() {
      if (value) cudnnDestroy(value);
    }
  };
  static thread_local std::map<int64_t, Handle> handles;
  Handle& handle = handles[device];
  if (!handle.value) {
    const cudnnStatus_t status = cudnnCreate(&handle.value);
    HANOK_REQUIRE(status == CUDNN_STATUS_SUCCESS, kDevice)
        << "cuDNN: got " << cudnnGetErrorString(status) << ", expected a handle; device " << device
        << "; set attention: flash";
  }
  cudnnSetStream(handle.value, c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream());
  return handle.value;
}

int capability_major(int64_t device) {
  int major = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, static_cast<int>(device));
  return major;
}

/// Declares the tensors of both graphs. dims are (segments, heads, longest, width); a row of qkv holds all heads of q,
/// k and v, so that the three are one tensor at three addresses, and so is their gradient; but shared heads have rows
/// of dk and rows of dv (PlanKey).
class GraphBuilder {
 public:
  GraphBuilder(fe::graph::Graph& graph, const PlanKey& key) : graph_(graph), key_(key) {
    const auto io = key.dtype == at::kHalf ? fe::DataType_t::HALF : fe::DataType_t::BFLOAT16;
    graph.set_io_data_type(io)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    row_offset_ = index(kRowOffset, key.slots + 1);
    out_offset_ = index(kOutOffset, key.slots + 1);
    if (key.has_shared_heads()) head_offset_ = index(kHeadOffset, key.slots + 1);
    sum_offset_ = index(kSumOffset, key.slots + 1);
    length_ = index(kLength, key.slots);
  }

  void forward() {
    auto attributes = fe::graph::SDPA_attributes()
                          .set_generate_stats(true)
                          .set_attn_scale(scale())
                          .set_causal_mask(key_.causal)
                          .set_padding_mask(true)
                          .set_seq_len_q(length_)
                          .set_seq_len_kv(length_);
    auto [out, log_sum] =
        graph_.sdpa(in_qkv(kQ, key_.heads), in_qkv(kK, key_.kv_heads), in_qkv(kV, key_.kv_heads), attributes);
    out->set_output(true).set_uid(kOut).set_dim(dim(key_.heads)).set_stride(out_stride());
    out->set_ragged_offset(out_offset_);
    log_sum->set_output(true).set_uid(kLogSum).set_dim(sum_dim()).set_stride(sum_stride());
    log_sum->set_ragged_offset(sum_offset_).set_data_type(fe::DataType_t::FLOAT);
  }

  void backward() {
    auto out = tensor(kOut, dim(key_.heads), out_stride()), dout = tensor(kDout, dim(key_.heads), out_stride());
    out->set_ragged_offset(out_offset_);
    dout->set_ragged_offset(out_offset_);
    auto log_sum = tensor(kLogSum, sum_dim(), sum_stride());
    log_sum->set_ragged_offset(sum_offset_).set_data_type(fe::DataType_t::FLOAT);
    auto attributes = fe::graph::SDPA_backward_attributes()
                          .set_attn_scale(scale())
                          .set_causal_mask(key_.causal)
                          .set_padding_mask(true)
                          .set_seq_len_q(length_)
                          .set_seq_len_kv(length_)
                          .set_max_total_seq_len_q(key_.rows)
                          .set_max_total_seq_len_kv(key_.rows)
                          .set_deterministic_algorithm(key_.deterministic);
    auto [dq, dk, dv] = graph_.sdpa_backward(
        in_qkv(kQ, key_.heads), in_qkv(kK, key_.kv_heads), in_qkv(kV, key_.kv_heads), out, dout, log_sum, attributes);
    gradient(dq, kDq, key_.heads, qkv_stride(), row_offset_);
    const Sizes stride = key_.has_shared_heads() ? stride_of(key_.kv_heads * key_.width) : qkv_stride();
    const Handle& offset = key_.has_shared_heads() ? head_offset_ : row_offset_;
    gradient(dk, kDk, key_.kv_heads, stride, offset);
    gradient(dv, kDv, key_.kv_heads, stride, offset);
  }

 private:
  using Handle = std::shared_ptr<fe::graph::Tensor_attributes>;
  using Sizes = std::vector<int64_t>;

  float scale() const { return 1 / std::sqrt(static_cast<float>(key_.width)); }
  Sizes dim(int64_t heads) const { return {key_.slots, heads, key_.longest, key_.width}; }
  Sizes stride_of(int64_t row) const { return {key_.longest * row, key_.width, row, 1}; }
  Sizes qkv_stride() const { return stride_of((key_.heads + 2 * key_.kv_heads) * key_.width); }
  Sizes out_stride() const { return stride_of(key_.heads * key_.width); }
  Sizes sum_dim() const { return {key_.slots, key_.heads, key_.longest, 1}; }
  Sizes sum_stride() const { return {key_.longest * key_.heads, 1, key_.heads, 1}; }

  Handle tensor(Id id, const Sizes& dim, const Sizes& stride) {
    return graph_.tensor(fe::graph::Tensor_attributes().set_uid(id).set_dim(dim).set_stride(stride));
  }
  Handle index(Id id, int64_t size) {
    return graph_.tensor(fe::graph::Tensor_attributes()
                             .set_uid(id)
                             .set_dim({size, 1, 1, 1})
                             .set_stride({1, 1, 1, 1})
                             .set_data_type(fe::DataType_t::INT32));
  }
  Handle in_qkv(Id id, int64_t heads) {
    Handle x = tensor(id, dim(heads), qkv_stride());
    x->set_ragged_offset(row_offset_);
    return x;
  }
  void gradient(const Handle& x, Id id, int64_t heads, const Sizes& stride, const Handle& offset) {
    x->set_output(true).set_uid(id).set_dim(dim(heads)).set_stride(stride);
    x->set_ragged_offset(offset);
  }

  fe::graph::Graph& graph_;
  PlanKey key_;
  Handle row_offset_, out_offset_, head_offset_, sum_offset_, length_;
};

fe::error_t build(fe::graph::Graph& graph, cudnnHandle_t handle) {
  if (auto error = graph.validate(); error.is_bad()) return error;
  if (auto error = graph.build_operation_graph(handle); error.is_bad()) return error;
  if (auto error = graph.create_execution_plans({fe::HeurMode_t::A}); error.is_bad()) return error;
  if (auto error = graph.check_support(handle); error.is_bad()) return error;
  return graph.build_plans(handle);
}

/// nullptr where cuDNN has no kernel; said once.
std::unique_ptr<Plan> make_plan(const PlanKey& key) {
  auto plan = std::make_unique<Plan>();
  GraphBuilder(plan->forward, key).forward();
  GraphBuilder(plan->backward, key).backward();
  const cudnnHandle_t handle = handle_of(key.device);
  for (fe::graph::Graph* graph : {&plan->forward, &plan->backward}) {
    fe::error_t error = build(*graph, handle);
    if (error.is_good()) continue;
    HANOK_LOG_RANK0(INFO) << "attention: cuDNN has no plan for " << key.heads << "/" << key.kv_heads
                          << " heads of width " << key.width << " in " << at::toString(key.dtype) << " ("
                          << error.get_message() << "); libtorch's kernels are used";
    return nullptr;
  }
  plan->forward_workspace = plan->forward.get_workspace_size();
  plan->backward_workspace = plan->backward.get_workspace_size();
  HANOK_VLOG(1) << "attention: cuDNN plan for " << key.heads << "/" << key.kv_heads << " heads of width " << key.width
                << ", up to " << key.slots << " segments of " << key.longest << " in " << key.rows
                << " rows; workspace " << plan->backward_workspace << " bytes";
  return plan;
}

Plan* plan_for(const PlanKey& key) {
  static std::mutex mutex;
  static std::map<PlanKey, std::unique_ptr<Plan>> plans;
  const std::lock_guard lock(mutex);
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second.get();
  return plans.emplace(key, make_plan(key)).first->second.get();
}

/// Both directions share addresses of qkv and the index tensors.
std::unordered_map<int64_t, void*> addresses(const Tensor& qkv,
                                             const Segments& segments,
                                             const AttentionSizes& sizes,
                                             const PlanKey& key) {
  RaggedOffsets& ragged = *segments.ragged;
  ragged.fit(segments, key.slots);
  char* base = static_cast<char*>(qkv.data_ptr());
  const int64_t element = qkv.element_size();
  return {{kQ, base},
          {kK, base + sizes.heads * sizes.width * element},
          {kV, base + (sizes.heads + sizes.kv_heads) * sizes.width * element},
          {kRowOffset, ragged.offsets(sizes.row())},
          {kOutOffset, ragged.offsets(sizes.heads * sizes.width)},
          {kSumOffset, ragged.offsets(sizes.heads)},
          {kLength, ragged.lengths.data_ptr()}};
}

void execute(fe::graph::Graph& graph,
             int64_t workspace_bytes,
             std::unordered_map<int64_t, void*>& tensors,
             const Tensor& like) {
  const Tensor workspace = at::empty({std::max<int64_t>(workspace_bytes, 1)}, like.options().dtype(at::kByte));
  fe::error_t error = graph.execute(handle_of(like.get_device()), tensors, workspace.data_ptr());
  HANOK_REQUIRE(error.is_good(), kDevice)
      << "attention: got an error of cuDNN: " << error.get_message() << ", expected a result; set attention: flash";
}

/// rows [T, 2C] of a wider tensor; eight bytes at once, which a head's width is a multiple of (runs()).
void copy_into_rows(const Tensor& dkv_2TC, const Tensor& rows) {
  rows.view(at::kDouble).unflatten(1, {2, -1}).copy_(dkv_2TC.view(at::kDouble).transpose(0, 1));
}

}  // namespace

std::shared_ptr<RaggedOffsets> make_ragged_offsets() {
  return std::make_shared<RaggedOffsets>();
}

bool runs(const Tensor& qkv, const Segments& segments, const AttentionSizes& sizes) {
  const bool is_16_bit = qkv.scalar_type() == at::kBFloat16 || qkv.scalar_type() == at::kHalf;
  if (!is_16_bit || sizes.width % 8 != 0 || sizes.width > 128 || qkv.size(0) == 0) return false;
  if (qkv.size(0) * sizes.row() > std::numeric_limits<int32_t>::max()) return false;  // offsets are int32
  if (capability_major(qkv.get_device()) < 9) return false;
  const c10::cuda::CUDAGuard guard(qkv.device());
  return plan_for(key_of(qkv, segments, sizes)) != nullptr;
}

std::pair<Tensor, Tensor> forward(const Tensor& qkv, const Segments& segments, const AttentionSizes& sizes) {
  const c10::cuda::CUDAGuard guard(qkv.device());
  const PlanKey key = key_of(qkv, segments, sizes);
  Plan* plan = plan_for(key);
  const Tensor out = at::empty({qkv.size(0), sizes.heads * sizes.width}, qkv.options());
  const Tensor log_sum = at::empty({qkv.size(0), sizes.heads}, qkv.options().dtype(at::kFloat));
  auto tensors = addresses(qkv, segments, sizes, key);
  tensors[kOut] = out.data_ptr();
  tensors[kLogSum] = log_sum.data_ptr();
  execute(plan->forward, plan->forward_workspace, tensors, qkv);
  return {out, log_sum};
}

Tensor backward(const Tensor& dout,
                const Tensor& qkv,
                const Tensor& out,
                const Tensor& log_sum,
                const Segments& segments,
                const AttentionSizes& sizes) {
  const c10::cuda::CUDAGuard guard(qkv.device());
  const PlanKey key = key_of(qkv, segments, sizes);
  Plan* plan = plan_for(key);
  const Tensor dqkv = at::empty_like(qkv);
  auto tensors = addresses(qkv, segments, sizes, key);
  char* base = static_cast<char*>(dqkv.data_ptr());
  const int64_t head = sizes.width * qkv.element_size();
  tensors[kOut] = out.data_ptr();
  tensors[kLogSum] = log_sum.data_ptr();
  tensors[kDout] = dout.data_ptr();
  tensors[kDq] = base;
  if (!key.has_shared_heads()) {
    tensors[kDk] = base + sizes.heads * head;
    tensors[kDv] = base + (sizes.heads + sizes.kv_heads) * head;
    execute(plan->backward, plan->backward_workspace, tensors, qkv);
    return dqkv;
  }
  const int64_t kv = sizes.kv_heads * sizes.width;
  const Tensor dkv_2TC = at::empty({2, qkv.size(0), kv}, qkv.options());
  tensors[kDk] = dkv_2TC.data_ptr();
  tensors[kDv] = dkv_2TC[1].data_ptr();
  tensors[kHeadOffset] = segments.ragged->offsets(kv);
  execute(plan->backward, plan->backward_workspace, tensors, qkv);
  copy_into_rows(dkv_2TC, dqkv.narrow(1, sizes.heads * sizes.width, 2 * kv));
  return dqkv;
}

}  // namespace attention_cudnn
}  // namespace hanok
