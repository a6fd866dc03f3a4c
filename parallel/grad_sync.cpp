#include "parallel/grad_sync.h"

#include <span>
#include <unordered_map>

#include "base/error.h"
#include "parallel/grad_buffer.h"
#include "parallel/grad_layout.h"
#include "parallel/grad_readiness.h"
#include "parallel/shared_sums.h"
#include "parallel/side_stream.h"
#include "parallel/squared_norm.h"

namespace hanok {

namespace {

/// Local flattened values of a parameter for which this rank speaks in the norm: each weight of the model is spoken for
/// once.
std::vector<Stretch> counted_stretches(const ParamSpec& spec, const Groups& groups, int64_t numel) {
  if (numel == 0 || !speaks_for(spec, groups)) return {};
  if (spec.cut_dim < 0) return {{0, numel}};
  const std::vector<int64_t> shape = local_shape(spec, groups);
  int64_t outer = 1, inner = 1;
  for (int dim = 0; dim < spec.cut_dim; ++dim) outer *= shape[dim];
  for (size_t dim = spec.cut_dim + 1; dim < shape.size(); ++dim) inner *= shape[dim];
  std::vector<Stretch> stretches;
  for (int64_t row = 0; row < outer; ++row) {
    for (const LocalRange& range : local_ranges(spec, groups)) {
      if (range.replica_index != 0) continue;
      const Stretch next{(row * shape[spec.cut_dim] + range.local_begin) * inner, range.size * inner};
      if (!stretches.empty() && stretches.back().begin + stretches.back().size == next.begin) {
        stretches.back().size += next.size;
      } else {
        stretches.push_back(next);
      }
    }
  }
  return stretches;
}

bool overlap_in_memory(const Tensor& a, const Tensor& b) {
  const auto* a_begin = static_cast<const char*>(a.const_data_ptr());
  const auto* b_begin = static_cast<const char*>(b.const_data_ptr());
  return a_begin < b_begin + b.nbytes() && b_begin < a_begin + a.nbytes();
}

}  // namespace

std::vector<ShardPiece> shard_pieces(const ParamTable& params, const Groups& groups) {
  return pieces_of(lay_out_gradients(params, groups, kBucketElements));
}

GradSizes gradient_sizes(const ParamTable& params, const Groups& groups) {
  const GradLayout layout = lay_out_gradients(params, groups, kBucketElements);
  return {.buffer = layout.size, .shard = layout.shard_size};
}

struct GradSync::State final : GradWatcher {
  State(const Groups& groups, const GradSyncOptions& options, const ParamTable& params);

  Groups groups;
  GradSyncOptions options;
  GradLayout layout;
  GradReadiness readiness;
  SideStream side;
  bool is_in_step = false;
  std::vector<std::string> names;
  std::vector<Tensor> values;  // of the trainable parameters, by index in the table; undefined for frozen ones
  std::vector<Tensor> grads;   // views of the buffer, likewise
  Tensor buffer, weights;      // [layout.size], weights in their own dtype
  Tensor shard;                // the end of the buffer
  std::optional<SharedSums> shared;
  std::vector<ShardPiece> pieces;
  std::vector<Stretch> counted;  // of the shard
  std::vector<Stretch> gaps;     // of the buffer: what no parameter has

  // Weights on their way: those of buckets [0, gathered) were sent for, those of [0, arrived) may be read.
  struct Block {
    size_t first_bucket = 0, end_bucket = 0;
  };
  std::vector<Block> blocks;
  std::unordered_map<const void*, size_t> bucket_of_weight;  // by the weight's TensorImpl
  std::vector<SideStream::Mark> marks;                       // by bucket
  size_t gathered = 0, arrived = 0;

  void check(const ParamTable& params);
  void allocate(const ParamTable& params);
  void find_blocks();
  void find_counted(const ParamTable& params);
  void attach();
  void open_groups();

  void backward_passed(int param) override;
  void gradient_put_off(int param) override;
  void gradient_added(int param) override;
  void require_not_left(int param) const;
  void send_ready(bool all);
  void send(const GradBucket& bucket);
  void fill_untouched(std::span<const GradBucket> buckets);
  void reduce(const GradBucket& bucket);

  /// Not where ranks share weights: their shards lie where other gradients begin (gaps included) before forwards have
  /// waited for them.
  bool updates_beside() const { return side.is_apart() && owns_all(); }
  void hand_out(const Block& block);
  void gather(size_t bucket);
  void await(size_t buckets);

  bool owns_all() const { return layout.size == layout.shard_size; }
  Comm& comm_of(const GradBucket& bucket) const { return bucket.experts ? *groups.expert_grad : *groups.grad; }
  Tensor own_shard(const GradBucket& bucket) const { return shard.narrow(0, bucket.shard_begin, bucket.piece); }
};

GradSync::State::State(const Groups& groups, const GradSyncOptions& options, const ParamTable& params)
    : groups(groups),
      options(options),
      layout(
          lay_out_gradients(params, groups, options.bucket_elements > 0 ? options.bucket_elements : kBucketElements)),
      readiness(layout, params.size()),
      side(options.overlap ? params.front().value.device() : at::kCPU, /*urgent=*/!owns_all()),
      gathered(layout.buckets.size()),
      arrived(layout.buckets.size()) {
  for (const Param& param : params) names.push_back(param.spec.name);
  if (owns_all()) this->options.overlap = false;
  marks.resize(layout.buckets.size());
}

void GradSync::State::check(const ParamTable& params) {
  const Param* first = nullptr;
  for (const Param& param : params) {
    if (!param.trainable) continue;
    if (first == nullptr) first = &param;
    const Tensor &value = param.value, &other = first->value;
    HANOK_REQUIRE(
        value.is_contiguous() && value.device() == other.device() && value.scalar_type() == other.scalar_type(), kShape)
        << param.spec.name << ": got a trainable weight that is " << (value.is_contiguous() ? "" : "strided, ")
        << at::toString(value.scalar_type()) << " on " << value.device().str() << ", expected contiguous "
        << at::toString(other.scalar_type()) << " on " << other.device().str() << " as " << first->spec.name
        << "; gradient buffers; make the model on one device in one dtype";
  }
}

/// Gradients and weights lie in one buffer each: they are summed and updated ones gathered where they are used. Sums of
/// buckets go to the end of the buffer of gradients, which buckets that have left make free, and end as one shard.
void GradSync::State::allocate(const ParamTable& params) {
  values.resize(params.size());
  grads.resize(params.size());
  at::TensorOptions options_of_weights;
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].trainable) values[i] = params[i].value;
    if (params[i].trainable || !options_of_weights.has_dtype()) options_of_weights = params[i].value.options();
  }
  buffer = at::zeros({layout.size}, options_of_weights.dtype(options.accumulate));
  weights = at::zeros({layout.size}, options_of_weights);
  shard = buffer.narrow(0, layout.size - layout.shard_size, layout.shard_size);
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    for (const GradPlace& place : layout.buckets[b].places) {
      Tensor& value = values[place.param];
      grads[place.param] = buffer.narrow(0, place.begin, place.size).view(value.sizes());
      const Tensor here = weights.narrow(0, place.begin, place.size).view(value.sizes());
      here.copy_(value);
      value.set_data(here);
      bucket_of_weight[value.unsafeGetTensorImpl()] = b;
    }
  }
  gaps = gaps_of(layout);
  pieces = pieces_of(layout);
}

/// Neighbours that this rank owns alone are one block, unless forwards wait for one after the other.
void GradSync::State::find_blocks() {
  for (size_t b = 0; b < layout.buckets.size(); ++b) {
    const bool joins = !updates_beside() && b > 0 && layout.buckets[b].parts == 1 && layout.buckets[b - 1].parts == 1;
    if (!joins) blocks.push_back({.first_bucket = b});
    blocks.back().end_bucket = b + 1;
  }
}

void GradSync::State::find_counted(const ParamTable& params) {
  int64_t joins_at = -1;  // a stretch that begins here continues the last one
  for (const ShardPiece& piece : pieces) {
    const Tensor& value = values[piece.param];
    const int64_t piece_end = piece.local_begin + piece.size;
    for (const Stretch& stretch : counted_stretches(params[piece.param].spec, groups, value.numel())) {
      const int64_t first = std::max(stretch.begin, piece.local_begin);
      const int64_t last = std::min(stretch.begin + stretch.size, piece_end);
      if (first >= last) continue;
      const int64_t begin = piece.shard_begin + first - piece.local_begin, end = begin + last - first;
      if (begin == joins_at) {
        counted.back().size = end - counted.back().begin;
      } else {
        counted.push_back({begin, end - begin});
      }
      // Zeros fill the space from a parameter to the next multiple of 32: they may be counted, so that stretches are
      // few and long.
      joins_at = last == piece_end ? grad_aligned(end) : end;
    }
  }
}

void GradSync::State::attach() {
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].defined()) attach_grad_buffer(values[i], grads[i], this, static_cast<int>(i));
  }
}

/// A first operation, which opens the communicator on GPUs: not in the middle of a backward, where ranks come at
/// different times.
void GradSync::State::open_groups() {
  if (!side.is_apart() || owns_all()) return;
  for (Comm* comm : {groups.grad.get(), groups.expert_grad.get()})
    side.run([&] {
      Tensor nothing = at::zeros({1}, buffer.options());
      comm->all_reduce(nothing, Reduce::kSum);
    });
}

void GradSync::State::require_not_left(int param) const {
  HANOK_REQUIRE(!is_in_step || !readiness.has_left(param), kShape)
      << names[param] << ": got a gradient after its sum over ranks was on its way, expected all of them before; "
      << "gradient buffers; what calls expect_last or expect_no_more is wrong";
}

void GradSync::State::backward_passed(int param) {
  require_not_left(param);
  readiness.backward_passed(param);
  send_ready(false);
}

void GradSync::State::gradient_put_off(int param) {
  require_not_left(param);
  readiness.put_off(param);
}

void GradSync::State::gradient_added(int param) {
  require_not_left(param);
  readiness.added(param);
  send_ready(false);
}

void GradSync::State::send_ready(bool all) {
  const at::NoGradGuard no_grad;
  while (const std::optional<size_t> bucket = readiness.take_next(all)) send(layout.buckets[*bucket]);
}

void GradSync::State::send(const GradBucket& bucket) {
  if (owns_all()) return;  // finish() fills all at once
  fill_untouched({&bucket, 1});
  await(layout.buckets.size());  // every operation of these groups has its place in one order
  side.run([&] { reduce(bucket); });
}

void GradSync::State::fill_untouched(std::span<const GradBucket> buckets) {
  std::vector<Tensor> all;
  for (const GradBucket& bucket : buckets)
    for (const GradPlace& place : bucket.places) all.push_back(values[place.param]);
  fill_untouched_gradients(all);
}

/// The sum of this rank's piece goes to its place in the shard, which is the end of the buffer: there lie buckets that
/// have left, or this one.
void GradSync::State::reduce(const GradBucket& bucket) {
  Comm& comm = comm_of(bucket);
  const Tensor all = buffer.narrow(0, bucket.begin, bucket.size());
  Tensor sum = own_shard(bucket);
  const at::ScalarType type = options.reduce.value_or(options.accumulate);
  if (comm.size() > 1 && type != options.accumulate) {
    Tensor travelling = at::empty({bucket.piece}, all.options().dtype(type));
    comm.reduce_scatter(travelling, all.to(type));
    sum.copy_(travelling);
  } else if (comm.size() > 1 && !overlap_in_memory(sum, all)) {
    comm.reduce_scatter(sum, all);
  } else {
    Tensor own = buffer.narrow(0, bucket.own_begin(), bucket.piece);
    comm.reduce_scatter(own, all);
    if (own.const_data_ptr() != sum.const_data_ptr()) sum.copy_(overlap_in_memory(own, sum) ? own.clone() : own);
  }
}

void GradSync::State::gather(size_t index) {
  const GradBucket& bucket = layout.buckets[index];
  if (bucket.parts == 1) return;
  Tensor all = weights.narrow(0, bucket.begin, bucket.size());
  comm_of(bucket).all_gather(all, weights.narrow(0, bucket.own_begin(), bucket.piece));
}

void GradSync::State::await(size_t buckets) {
  const size_t end = std::min(buckets, gathered);
  if (end <= arrived) return;
  const at::NoGradGuard no_grad;
  if (side.is_apart()) {
    marks[end - 1].wait();  // of one stream: all before it have arrived as well
    arrived = end;
  }
  for (; arrived < end; ++arrived) gather(arrived);
}

GradSync::GradSync(ParamTable& params, const Groups& groups, const GradSyncOptions& options) {
  const at::NoGradGuard no_grad;
  state_ = std::make_unique<State>(groups, options, params);
  state_->check(params);
  for (Param& param : params) param.value.set_requires_grad(param.trainable);
  state_->allocate(params);
  state_->find_blocks();
  state_->shared.emplace(params, groups, state_->grads);
  state_->find_counted(params);
  state_->attach();
  state_->open_groups();
}

GradSync::~GradSync() {
  for (Tensor& value : state_->values) {
    if (value.defined()) detach_grad_buffer(value);
  }
  // Weights stay when this goes; what still comes must not come into memory that somebody else was given.
  if (state_->side.is_apart()) state_->await(state_->layout.buckets.size());
}

void GradSync::start() {
  const at::NoGradGuard no_grad;
  state_->attach();  // whoever cleared .grad in between would silently lose gradients
  if (state_->buffer.scalar_type() == state_->weights.scalar_type()) {
    if (state_->updates_beside()) state_->await(state_->layout.buckets.size());  // they read it
    state_->buffer.zero_();
  } else {
    for (const Tensor& value : state_->values)
      if (value.defined()) begin_gradient(value);
    for (const Stretch& gap : state_->gaps) state_->buffer.narrow(0, gap.begin, gap.size).zero_();
  }
  state_->readiness.start();
  state_->is_in_step = true;
}

void GradSync::expect_last(const std::vector<int>& params, bool only_put_off) {
  if (!state_->options.overlap) return;
  for (const int param : params) state_->readiness.expect_last(param, only_put_off);
  state_->send_ready(false);
}

void GradSync::expect_no_more(const std::vector<int>& params) {
  if (!state_->options.overlap) return;
  for (const int param : params) state_->readiness.expect_no_more(param);
  state_->send_ready(false);
}

void GradSync::finish() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.await(s.layout.buckets.size());  // updates read gradients, and no forward may have asked for all weights
  s.send_ready(true);
  s.fill_untouched(s.layout.buckets);  // shared ones are still here
  s.shared->sum();
  for (size_t b = s.layout.buckets.size(); b-- > 0;)
    if (s.layout.buckets[b].is_shared) s.send(s.layout.buckets[b]);
  s.side.mark().wait();
  s.is_in_step = false;
}

Tensor& GradSync::shard() {
  return state_->shard;
}

const std::vector<ShardPiece>& GradSync::pieces() const {
  return state_->pieces;
}

Tensor GradSync::squared_norm() const {
  const at::NoGradGuard no_grad;
  Tensor sum = hanok::squared_norm(state_->shard, state_->counted);
  state_->groups.world->all_reduce(sum, Reduce::kSum);
  return sum;
}

void GradSync::scatter_values(const Tensor& shard_values) {
  const at::NoGradGuard no_grad;
  HANOK_REQUIRE(shard_values.sizes() == state_->shard.sizes(), kShape)
      << "scatter_values: got shape " << shard_values.sizes().vec() << ", expected " << state_->shard.sizes().vec()
      << "; gradient buffers; pass values in the layout of pieces()";
  update_values([&](const WeightBlock& block) {
    Tensor(block.weights).copy_(shard_values.narrow(0, block.shard_begin, block.weights.numel()));
  });
  await_values();
}

std::vector<WeightBlock> GradSync::own_weights() const {
  std::vector<WeightBlock> out;
  for (const State::Block& block : state_->blocks) {
    const GradBucket &first = state_->layout.buckets[block.first_bucket],
                     &last = state_->layout.buckets[block.end_bucket - 1];
    const int64_t size = last.shard_begin + last.piece - first.shard_begin;
    out.push_back({first.shard_begin, state_->weights.narrow(0, first.own_begin(), size)});
  }
  return out;
}

void GradSync::update_values(const std::function<void(const WeightBlock&)>& update) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  const std::vector<WeightBlock> own = own_weights();
  s.gathered = s.arrived = 0;
  for (size_t i = 0; i < own.size(); ++i) {
    if (s.updates_beside())
      s.side.run([&] { update(own[i]); });
    else
      update(own[i]);
    s.hand_out(s.blocks[i]);
  }
}

void GradSync::State::hand_out(const Block& block) {
  for (size_t bucket = block.first_bucket; bucket < block.end_bucket; ++bucket) {
    if (side.is_apart()) {
      side.run([&] { gather(bucket); });
      marks[bucket] = side.mark();
    }
    gathered = bucket + 1;
  }
  if (!options.overlap && !side.is_apart()) await(block.end_bucket);
}

void GradSync::await_values(const std::vector<Tensor>& weights) {
  State& s = *state_;
  if (s.arrived == s.gathered) return;
  size_t buckets = 0;
  for (const Tensor& weight : weights) {
    const auto found = s.bucket_of_weight.find(weight.unsafeGetTensorImpl());
    if (found != s.bucket_of_weight.end()) buckets = std::max(buckets, found->second + 1);
  }
  s.await(buckets);
}

void GradSync::await_values() {
  state_->await(state_->layout.buckets.size());
}

Tensor GradSync::full_grad(int param) {
  const at::NoGradGuard no_grad;
  for (const GradBucket& bucket : state_->layout.buckets) {
    for (const GradPlace& place : bucket.places) {
      if (place.param != param) continue;
      Tensor all = at::empty({bucket.size()}, state_->buffer.options());
      state_->comm_of(bucket).all_gather(all, state_->own_shard(bucket));
      return all.narrow(0, place.begin - bucket.begin, place.size).view(state_->values[param].sizes()).clone();
    }
  }
  HANOK_FAIL(kShape) << "full_grad: got parameter " << param << ", expected a trainable one of "
                     << state_->values.size() << "; gradient buffers; frozen parameters have no gradient";
}

}  // namespace hanok
