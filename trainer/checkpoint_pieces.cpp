#include "trainer/checkpoint_pieces.h"

#include <algorithm>
#include <cassert>

#include "base/error.h"
#include "base/log.h"
#include "trainer/fill.h"

namespace hanok {
namespace {

int64_t product(const std::vector<int64_t>& shape, size_t begin, size_t end) {
  int64_t out = 1;
  for (size_t i = begin; i < end; ++i) out *= shape[i];
  return out;
}

std::vector<StoredRun> stored(const std::vector<FlatRun>& runs) {
  std::vector<StoredRun> out;
  for (const FlatRun& run : runs) out.push_back({run.global_begin, run.size});
  return out;
}

int64_t count(const std::vector<FlatRun>& runs) {
  int64_t out = 0;
  for (const FlatRun& run : runs) out += run.size;
  return out;
}

/// Up to ten names and how many more there are.
std::string some(const std::vector<std::string>& names) {
  constexpr size_t kShown = 10;
  const std::vector<std::string> first(names.begin(), names.begin() + std::min(names.size(), kShown));
  return names.size() > kShown ? concat(first, " and ", names.size() - kShown, " more") : concat(first);
}

}  // namespace

const std::vector<ShardBuffers::Named>& ShardBuffers::named() {
  static const std::vector<Named> list = {
      {"master/", &ShardBuffers::master}, {"m/", &ShardBuffers::m}, {"v/", &ShardBuffers::v}};
  return list;
}

ShardBuffers shard_buffers(AdamW& optimizer) {
  return {.pieces = optimizer.pieces(),
          .master = optimizer.master(),
          .m = optimizer.first_moment(),
          .v = optimizer.second_moment()};
}

std::vector<FlatRun> spoken_runs(const ParamSpec& spec, const Groups& groups) {
  if (!speaks_for(spec, groups)) return {};
  const std::vector<FlatRun> runs = flat_runs(spec, groups);
  if (spec.cut_dim < 0 || spec.inner_dim >= 0) return runs;  // nobody else has any of it
  const int64_t inner = product(spec.shape, spec.cut_dim + 1, spec.shape.size());
  const int64_t row = local_shape(spec, groups)[spec.cut_dim] * inner;  // of the local tensor, along outer dims
  // A run may span segments or rows: the ranges of the row tell which parts of it are spoken for elsewhere.
  std::vector<FlatRun> out;
  const std::vector<LocalRange> ranges = local_ranges(spec, groups);
  for (const FlatRun& run : runs) {
    for (int64_t at = run.local_begin; at < run.local_begin + run.size;) {
      const int64_t in_row = at % row;
      const auto range = std::find_if(
          ranges.begin(), ranges.end(), [&](const LocalRange& r) { return in_row < (r.local_begin + r.size) * inner; });
      assert(range != ranges.end());
      const int64_t end =
          std::min(run.local_begin + run.size, at - in_row + (range->local_begin + range->size) * inner);
      const FlatRun part{run.global_begin + at - run.local_begin, at, end - at};
      if (range->replica_index == 0) {
        const bool extends = !out.empty() && out.back().local_begin + out.back().size == part.local_begin &&
                             out.back().global_begin + out.back().size == part.global_begin;
        if (extends) {
          out.back().size += part.size;
        } else {
          out.push_back(part);
        }
      }
      at = end;
    }
  }
  return out;
}

std::vector<FlatRun> clipped(const std::vector<FlatRun>& runs, int64_t begin, int64_t size) {
  std::vector<FlatRun> out;
  // In local order: the first run that reaches beyond `begin` is found without a scan.
  auto run = std::upper_bound(
      runs.begin(), runs.end(), begin, [](int64_t at, const FlatRun& r) { return at < r.local_begin + r.size; });
  for (; run != runs.end() && run->local_begin < begin + size; ++run) {
    const int64_t first = std::max(begin, run->local_begin);
    const int64_t last = std::min(begin + size, run->local_begin + run->size);
    out.push_back({run->global_begin + first - run->local_begin, first, last - first});
  }
  return out;
}

std::vector<StoredTensor> stored_tensors(const ParamTable& params) {
  std::vector<StoredTensor> out;
  for (const Param& param : params) {
    out.push_back({model_key(param.spec.name), param.value.scalar_type(), param.spec.shape});
    if (!param.trainable) continue;
    for (const auto& named : ShardBuffers::named())
      out.push_back({named.prefix + param.spec.name, at::kFloat, param.spec.shape});
  }
  return out;
}

std::vector<Snapshot::Source> Snapshot::sources(const ParamTable& params,
                                                const ShardBuffers& buffers,
                                                const Groups& groups) {
  std::vector<Source> out;
  for (const Param& param : params) {
    const Comm& same = is_of_experts(param.spec) ? *groups.expert_grad : *groups.grad;  // ranks with the same values
    const int64_t index = same.rank(), parts = same.size();
    const int64_t n = param.value.numel(), begin = n * index / parts, end = n * (index + 1) / parts;
    out.push_back({model_key(param.spec.name),
                   param.value.detach().reshape({-1}),
                   clipped(spoken_runs(param.spec, groups), begin, end - begin),
                   0,
                   0});
  }
  for (const ShardPiece& piece : buffers.pieces) {
    const ParamSpec& spec = params[piece.param].spec;
    const auto runs = clipped(spoken_runs(spec, groups), piece.local_begin, piece.size);
    for (const auto& named : ShardBuffers::named())
      out.push_back({named.prefix + spec.name, buffers.*named.tensor, runs, piece.local_begin, piece.shard_begin});
  }
  std::erase_if(out, [](const Source& source) { return source.runs.empty(); });
  return out;
}

std::vector<Tensor> Snapshot::Source::stretches() const {
  std::vector<Tensor> out;
  for (size_t i = 0; i < runs.size();) {
    int64_t size = runs[i].size;
    size_t next = i + 1;
    while (next < runs.size() && runs[next].local_begin == runs[i].local_begin + size) size += runs[next++].size;
    out.push_back(flat.narrow(0, at + runs[i].local_begin - begin, size));
    i = next;
  }
  return out;
}

Snapshot::~Snapshot() {
  try {
    copied_.wait_on_host();  // the device may still write to the memory
  } catch (const c10::Error& error) {
    HANOK_LOG(WARNING) << "copies to the host did not end: " << error.what_without_backtrace();
  }
}

void Snapshot::reserve(const std::vector<Source>& sources) {
  int64_t bytes = 0;
  for (const Source& source : sources)
    bytes += HostBuffer::room_bytes(count(source.runs) * static_cast<int64_t>(source.flat.element_size()));
  if (memory_ && memory_->bytes() >= bytes) return;
  copied_.wait_on_host();
  memory_.reset();  // before the new one is there: the host may have no room for both
  memory_ = std::make_unique<HostBuffer>(bytes, device_, "this rank's part of a checkpoint");
}

void Snapshot::prepare(const ParamTable& params, const ShardBuffers& buffers, const Groups& groups) {
  reserve(sources(params, buffers, groups));
}

const std::vector<StoredPiece>& Snapshot::take(const ParamTable& params,
                                               const ShardBuffers& buffers,
                                               const Groups& groups) {
  const at::NoGradGuard no_grad;
  sources_ = sources(params, buffers, groups);
  reserve(sources_);
  if (const auto failure = preparation().take()) throw *failure;
  memory_->clear();
  pieces_.clear();
  side_.run([&] {
    for (const Source& source : sources_) {
      const Tensor to = memory_->carve(source.flat.scalar_type(), count(source.runs));
      int64_t at = 0;
      for (const Tensor& from : source.stretches()) {
        memory_->copy(to.narrow(0, at, from.numel()), from);
        at += from.numel();
      }
      pieces_.push_back({source.key, stored(source.runs), to});
    }
  });
  copied_ = side_.mark();
  return pieces_;
}

const std::vector<StoredPiece>& Snapshot::lay_open(const ParamTable& params,
                                                   const ShardBuffers& buffers,
                                                   const Groups& groups) {
  const at::NoGradGuard no_grad;
  sources_ = sources(params, buffers, groups);
  pieces_.clear();
  for (const Source& source : sources_) {
    const std::vector<Tensor> stretches = source.stretches();
    pieces_.push_back(
        {source.key, stored(source.runs), stretches.size() == 1 ? stretches.front() : at::cat(stretches)});
  }
  side_.run([] {});
  copied_ = side_.mark();
  return pieces_;
}

namespace {

/// `runs`: of `to`, in its order.
Filling filling_of(
    const TensorStore& store, const std::string& key, std::vector<FlatRun> runs, at::ScalarType dtype, Tensor to) {
  return {std::move(to), dtype, [&store, key, runs = std::move(runs)](int64_t begin, Tensor& host) {
            store.read(key, stored(clipped(runs, begin, host.numel())), host);
          }};
}

}  // namespace

bool read_weights(const TensorStore& store, ParamTable& params, const Groups& groups) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::ScalarType> dtypes;
  for (const StoredTensor& tensor : store.tensors()) dtypes[tensor.name] = tensor.dtype;
  bool converted = false;
  std::vector<Filling> fillings;
  for (Param& param : params) {
    const std::string key = model_key(param.spec.name);
    const at::ScalarType dtype = dtypes.at(key);
    fillings.push_back(filling_of(store, key, flat_runs(param.spec, groups), dtype, param.value.detach().view({-1})));
    converted = converted || dtype != param.value.scalar_type();
  }
  fill(fillings, params.front().value.device());
  return converted;
}

void read_shards(const TensorStore& store, const ParamTable& params, const Groups& groups, ShardBuffers& buffers) {
  std::vector<Filling> fillings;
  for (const ShardPiece& piece : buffers.pieces) {
    const ParamSpec& spec = params[piece.param].spec;
    auto runs = clipped(flat_runs(spec, groups), piece.local_begin, piece.size);
    for (FlatRun& run : runs) run.local_begin -= piece.local_begin;
    for (const auto& named : ShardBuffers::named())
      fillings.push_back(filling_of(store,
                                    named.prefix + spec.name,
                                    runs,
                                    at::kFloat,
                                    (buffers.*named.tensor).narrow(0, piece.shard_begin, piece.size)));
  }
  fill(fillings, buffers.master.device());
}

void check_same_model(const TensorStore& store, const ParamTable& params, const std::string& directory) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const StoredTensor& tensor : store.tensors())
    if (tensor.name.starts_with(model_key(""))) shapes[tensor.name.substr(model_key("").size())] = tensor.shape;
  std::vector<std::string> missing, other_shape, unexpected;
  for (const Param& param : params) {
    const auto found = shapes.find(param.spec.name);
    if (found == shapes.end()) {
      missing.push_back(param.spec.name);
      continue;
    }
    if (found->second != param.spec.shape)
      other_shape.push_back(concat(param.spec.name, " ", found->second, " instead of ", param.spec.shape));
    shapes.erase(found);
  }
  for (const auto& [name, shape] : shapes) unexpected.push_back(concat(name, " ", shape));
  if (missing.empty() && other_shape.empty() && unexpected.empty()) return;
  std::string got;
  if (!missing.empty()) got += concat("; missing: ", some(missing));
  if (!unexpected.empty()) got += concat("; unexpected: ", some(unexpected));
  if (!other_shape.empty()) got += concat("; of another shape: ", some(other_shape));
  HANOK_FAIL(kCheckpoint) << "checkpoint: got weights of another model, expected those of the configured one" << got
                          << "; " << directory << "; use the config that it was saved with, or another `out`";
}

void check_same_trainable(const TensorStore& store, const ParamTable& params, const std::string& directory) {
  std::vector<std::string> missing;
  for (const Param& param : params)
    if (param.trainable && !store.contains(ShardBuffers::named()[0].prefix + param.spec.name))
      missing.push_back(param.spec.name);
  HANOK_REQUIRE(missing.empty(), kCheckpoint)
      << "checkpoint: got no optimizer state, expected it for every trainable weight; missing: " << some(missing)
      << "; " << directory << "; keep `trainable` as it was, or train the new weights in a stage of their own";
}

}  // namespace hanok
