#include "parallel/grad_sync.h"

#include "base/error.h"
#include "parallel/grad_buffer.h"
#include "parallel/squared_norm.h"

namespace hanok {

namespace {

constexpr int64_t kAlignment = 32;                     // elements: vectorised kernels on any piece
constexpr int64_t kBucketElements = int64_t{1} << 24;  // of one temporary buffer

int64_t aligned(int64_t size) {
  return (size + kAlignment - 1) / kAlignment * kAlignment;
}

bool is_expert(const ParamSpec& spec) {
  return spec.cut_dim >= 0 && spec.cut_axis == Axis::kEp;
}

/// Where a trainable parameter lies in the flat buffer of its group.
struct Place {
  int param = 0;
  int64_t begin = 0, size = 0;
};

std::vector<Place> lay_out(const ParamTable& params, bool experts) {
  std::vector<Place> places;
  int64_t begin = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    if (!params[i].trainable || is_expert(params[i].spec) != experts) continue;
    places.push_back({.param = static_cast<int>(i), .begin = begin, .size = params[i].value.numel()});
    begin += aligned(places.back().size);
  }
  return places;
}

int64_t shard_size_of(const std::vector<Place>& places, int parts) {
  const int64_t total = places.empty() ? 0 : places.back().begin + places.back().size;
  return aligned((total + parts - 1) / parts);
}

/// Calls visit(place, first, last) with flat positions for every parameter that has values in [begin, end).
template <class Visit>
void for_each_place(const std::vector<Place>& places, int64_t begin, int64_t end, const Visit& visit) {
  auto place = std::upper_bound(
      places.begin(), places.end(), begin, [](int64_t at, const Place& other) { return at < other.begin; });
  if (place != places.begin()) --place;
  for (; place != places.end() && place->begin < end; ++place) {
    const int64_t first = std::max(begin, place->begin), last = std::min(end, place->begin + place->size);
    if (first < last) visit(*place, first, last);
  }
}

/// Local flattened values of a parameter for which this rank speaks in the norm: each weight of the model is spoken for
/// once.
std::vector<Stretch> counted_stretches(const ParamSpec& spec, const Groups& groups, int64_t numel) {
  const bool repeated = is_expert(spec) ? groups.etp->rank() > 0 : spec.cut_dim < 0 && groups.tp->rank() > 0;
  if (repeated || numel == 0 || !speaks_for(spec, groups)) return {};
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

/// The weights that share one group of ranks: dense ones over grad, experts over expert_grad.
struct Flat {
  bool experts = false;
  std::shared_ptr<Comm> comm;
  std::vector<Place> places;
  int64_t shard_size = 0;
  int64_t shard_begin = 0;  // in State::shard
  Tensor buffer;            // gradients [comm->size() * shard_size]
  Tensor weights;           // the same stretch of the weights themselves, in their dtype
  Tensor own_weights() const { return weights.narrow(0, comm->rank() * shard_size, shard_size); }
};

/// A part of one gradient that several ranks of tp hold together. Slots: one per set of ranks that share it; a rank
/// adds to its own slot and leaves zeros in the others, so that one all-reduce over tp sums within every set.
struct TpSum {
  Tensor grad;  // view of the buffer
  int slot = 0, slots = 1;
  int64_t elements() const { return slots * grad.numel(); }
};

}  // namespace

std::vector<ShardPiece> shard_pieces(const ParamTable& params, int index, int parts, bool experts) {
  const std::vector<Place> places = lay_out(params, experts);
  const int64_t shard_size = shard_size_of(places, parts), shard_first = index * shard_size;
  std::vector<ShardPiece> pieces;
  for_each_place(places, shard_first, shard_first + shard_size, [&](const Place& place, int64_t first, int64_t last) {
    pieces.push_back({.param = place.param,
                      .local_begin = first - place.begin,
                      .size = last - first,
                      .shard_begin = first - shard_first});
  });
  return pieces;
}

int64_t shard_size(const ParamTable& params, int parts, bool experts) {
  return shard_size_of(lay_out(params, experts), parts);
}

struct GradSync::State {
  Groups groups;
  std::vector<Tensor> values;  // of the trainable parameters, by index in the table; undefined for frozen ones
  std::vector<Tensor> grads;   // views of the buffers, likewise
  Flat flats[2];
  std::vector<TpSum> tp_sums;
  struct Twin {
    Tensor grad;  // view of the buffer
    int stage = 0;
  };
  std::vector<Twin> twins;
  std::vector<ShardPiece> pieces;
  std::vector<Stretch> counted;  // of the shard
  Tensor shard;

  void check(const ParamTable& params);
  void allocate(const ParamTable& params, at::ScalarType accumulate);
  void move_weights(Flat& flat);
  void find_tp_sums(const ParamTable& params);
  void find_counted(const ParamTable& params);
  void attach();
  void sum_over_tp();
  void sum_over_twins();
  Tensor shard_of(const Flat& flat) const { return shard.narrow(0, flat.shard_begin, flat.shard_size); }
};

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

void GradSync::State::allocate(const ParamTable& params, at::ScalarType accumulate) {
  values.resize(params.size());
  grads.resize(params.size());
  at::TensorOptions options = at::TensorOptions().dtype(accumulate);
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].trainable) values[i] = params[i].value;
    options = options.device(params[i].value.device());
  }
  int64_t shard_size = 0;
  for (const bool experts : {false, true}) {
    Flat& flat = flats[experts];
    flat.experts = experts;
    flat.comm = experts ? groups.expert_grad : groups.grad;
    flat.places = lay_out(params, experts);
    flat.shard_size = shard_size_of(flat.places, flat.comm->size());
    flat.shard_begin = shard_size;
    flat.buffer = at::zeros({flat.comm->size() * flat.shard_size}, options);
    for (const Place& place : flat.places) {
      const Tensor& value = values[place.param];
      grads[place.param] = flat.buffer.narrow(0, place.begin, place.size).view(value.sizes());
    }
    move_weights(flat);
    for (ShardPiece piece : shard_pieces(params, flat.comm->rank(), flat.comm->size(), experts)) {
      piece.shard_begin += flat.shard_begin;
      pieces.push_back(piece);
    }
    shard_size += flat.shard_size;
  }
  // The summed shard takes the place of this rank's block; two groups need a tensor that holds both shards.
  const Flat& dense = flats[false];
  shard = flats[true].places.empty() ? dense.buffer.narrow(0, dense.comm->rank() * dense.shard_size, dense.shard_size)
                                     : at::zeros({shard_size}, options);
}

/// The weights of a flat lie in one buffer, so that updated ones are gathered where they are used.
void GradSync::State::move_weights(Flat& flat) {
  if (flat.places.empty()) return;
  flat.weights = at::zeros({flat.comm->size() * flat.shard_size}, values[flat.places[0].param].options());
  for (const Place& place : flat.places) {
    Tensor& value = values[place.param];
    const Tensor here = flat.weights.narrow(0, place.begin, place.size).view(value.sizes());
    here.copy_(value);
    value.set_data(here);
  }
}

void GradSync::State::find_tp_sums(const ParamTable& params) {
  const int parts = groups.tp->size();
  if (parts == 1) return;
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i].spec;
    if (!params[i].trainable) continue;
    if (spec.cut_dim < 0) {
      if (spec.sum_grad_over_tp) tp_sums.push_back({.grad = grads[i]});
      continue;
    }
    for (const LocalRange& range : local_ranges(spec, groups)) {
      if (range.replicas == 1) continue;
      HANOK_REQUIRE(!is_expert(spec), kShape) << spec.name << ": got fewer experts than ep = " << groups.ep->size()
                                              << ", expected a multiple; gradient sums; choose a smaller ep";
      tp_sums.push_back({.grad = grads[i].narrow(spec.cut_dim, range.local_begin, range.size),
                         .slot = groups.tp->rank() / range.replicas,
                         .slots = parts / range.replicas});
    }
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
      joins_at = last == piece_end ? aligned(end) : end;
    }
  }
}

void GradSync::State::attach() {
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].defined()) attach_grad_buffer(values[i], grads[i]);
  }
}

void GradSync::State::sum_over_tp() {
  for (size_t first = 0; first < tp_sums.size();) {
    size_t last = first;
    int64_t elements = 0;
    while (last < tp_sums.size() && (last == first || elements + tp_sums[last].elements() <= kBucketElements)) {
      elements += tp_sums[last++].elements();
    }
    Tensor bucket = at::zeros({elements}, tp_sums[first].grad.options());
    std::vector<Tensor> own;
    int64_t begin = 0;
    for (size_t i = first; i < last; ++i) {
      const TpSum& sum = tp_sums[i];
      const int64_t size = sum.grad.numel();
      own.push_back(bucket.narrow(0, begin + sum.slot * size, size).view(sum.grad.sizes()));
      own.back().copy_(sum.grad);
      begin += sum.elements();
    }
    groups.tp->all_reduce(bucket, Reduce::kSum);
    for (size_t i = first; i < last; ++i) tp_sums[i].grad.copy_(own[i - first]);
    first = last;
  }
}

/// Both stages add the same two numbers: their copies of the weight stay equal bit by bit.
void GradSync::State::sum_over_twins() {
  for (const Twin& twin : twins) {
    const Tensor flat = twin.grad.view(-1);
    for (int64_t begin = 0; begin < flat.numel(); begin += kBucketElements) {
      const Tensor own = flat.narrow(0, begin, std::min(kBucketElements, flat.numel() - begin));
      Tensor theirs = at::empty_like(own);
      groups.pp->offer(own.clone(), twin.stage);
      groups.pp->take(theirs, twin.stage);
      own.add_(theirs);
    }
  }
}

GradSync::GradSync(ParamTable& params, const Groups& groups, at::ScalarType accumulate)
    : state_(std::make_unique<State>()) {
  const at::NoGradGuard no_grad;
  state_->groups = groups;
  state_->check(params);
  for (Param& param : params) param.value.set_requires_grad(param.trainable);
  state_->allocate(params, accumulate);
  state_->find_tp_sums(params);
  state_->find_counted(params);
  for (size_t i = 0; i < params.size(); ++i)
    if (params[i].trainable && params[i].spec.twin >= 0)
      state_->twins.push_back({.grad = state_->grads[i], .stage = params[i].spec.twin});
  state_->attach();
}

GradSync::~GradSync() {
  for (Tensor& value : state_->values) {
    if (value.defined()) detach_grad_buffer(value);
  }
}

void GradSync::start() {
  const at::NoGradGuard no_grad;
  for (Flat& flat : state_->flats) flat.buffer.zero_();
  state_->attach();  // whoever cleared .grad in between would silently lose gradients
}

void GradSync::finish() {
  const at::NoGradGuard no_grad;
  state_->sum_over_tp();
  state_->sum_over_twins();
  for (Flat& flat : state_->flats) {
    if (flat.places.empty()) continue;
    Tensor shard = state_->shard_of(flat);
    flat.comm->reduce_scatter(shard, flat.buffer);
  }
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
  for (const Flat& flat : state_->flats) {
    if (!flat.places.empty()) flat.own_weights().copy_(shard_values.narrow(0, flat.shard_begin, flat.shard_size));
  }
  gather_values();
}

std::vector<WeightBlock> GradSync::own_weights() const {
  std::vector<WeightBlock> blocks;
  for (const Flat& flat : state_->flats) {
    if (!flat.places.empty()) blocks.push_back({flat.shard_begin, flat.own_weights()});
  }
  return blocks;
}

void GradSync::gather_values() {
  const at::NoGradGuard no_grad;
  for (Flat& flat : state_->flats) {
    if (!flat.places.empty()) flat.comm->all_gather(flat.weights, flat.own_weights());
  }
}

Tensor GradSync::full_grad(int param) {
  const at::NoGradGuard no_grad;
  for (const Flat& flat : state_->flats) {
    for (const Place& place : flat.places) {
      if (place.param != param) continue;
      Tensor all = at::empty_like(flat.buffer);
      flat.comm->all_gather(all, state_->shard_of(flat));
      return all.narrow(0, place.begin, place.size).view(state_->values[param].sizes()).clone();
    }
  }
  HANOK_FAIL(kShape) << "full_grad: got parameter " << param << ", expected a trainable one of "
                     << state_->values.size() << "; gradient buffers; frozen parameters have no gradient";
}

}  // namespace hanok
