#include "dataio/loader.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "dataio/ordered_workers.h"

namespace hanok {
namespace {

using ChangeSample = std::function<Sample(const SampleRef&, Sample)>;

/// Runs in a reader thread.
Batch read_batch(const Datasets& datasets,
                 const std::vector<Row>& rows,
                 const BatchSpec& spec,
                 const ChangeSample& change) {
  std::vector<Sample> samples;
  std::vector<SampleRef> refs;
  for (const Row& row : rows) refs.insert(refs.end(), row.begin(), row.end());
  for (const SampleRef& ref : refs) {
    Sample sample = datasets.at(static_cast<size_t>(ref.dataset))->read(ref.index);
    samples.push_back(change ? change(ref, std::move(sample)) : std::move(sample));
  }
  try {
    Batch batch = make_batch(samples, refs, spec);
    size_t next = 0;
    for (size_t row = 0; row < rows.size(); ++row)
      for (size_t i = 0; i < rows[row].size(); ++i) batch.samples[next++].row = static_cast<int>(row);
    return batch;
  } catch (const Error& error) {
    std::string files;
    for (const auto& dataset : datasets) files += (files.empty() ? "" : ", ") + dataset->file();
    throw Error(error.kind(), concat(error.what(), "; packed in ", files));
  }
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace

BatchSpec batch_spec(const StageConfig& stage,
                     const DataConfig& data,
                     const SampleEncoder& encoder,
                     int64_t pad_multiple,
                     bool pin_memory) {
  BatchSpec spec{.seq_len = stage.seq_len,
                 .rows_per_micro_batch = stage.rows_per_micro_batch,
                 .pad_multiple = pad_multiple,
                 .vision = encoder.vision,
                 .image_limits = {.max_pixels = data.max_image_pixels},
                 .pin_memory = pin_memory};
  spec.weight = stage.weight == "token"  ? TokenWeight::kToken
                : stage.weight == "sqrt" ? TokenWeight::kSqrt
                                         : TokenWeight::kSample;
  spec.unit = stage.sample == "turn" ? WeightUnit::kTurn : WeightUnit::kSample;
  return spec;
}

UsableSamples usable_samples(const Dataset& dataset, double share, int64_t seq_len) {
  UsableSamples usable;
  usable.source.share = share;
  std::vector<std::string> named;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const int64_t num_tokens = dataset.num_tokens(i);
    const bool is_too_long = num_tokens > seq_len;
    if (!is_too_long && dataset.num_label_tokens(i) > 0) {
      usable.source.lengths.push_back(num_tokens);
      usable.source.indices.push_back(i);
      continue;
    }
    ++usable.left_out.by_reason[is_too_long ? "too_long" : "no_labels"];
    if (named.size() < 3) {
      named.push_back(concat(dataset.id(i),
                             is_too_long ? concat(": ", num_tokens, " tokens") : ": it does not end with an answer"));
    }
  }
  const std::string counts = [&] {
    std::string text;
    for (const auto& [reason, count] : usable.left_out.by_reason)
      text += concat(text.empty() ? "" : ", ", reason, ": ", count);
    return text;
  }();
  HANOK_REQUIRE(!usable.source.lengths.empty(), kData)
      << "dataset: got no sample to learn from among " << dataset.size() << " (" << counts << "), expected some with "
      << "an answer and at most seq_len = " << seq_len << " tokens; " << dataset.file() << ", for example " << named
      << "; raise seq_len, lower data.max_pixels, or add answers";
  if (usable.left_out.total() > 0) {
    HANOK_LOG_RANK0(WARNING) << "dataset: left out " << usable.left_out.total() << " of " << dataset.size()
                             << " samples (" << counts << ") at seq_len = " << seq_len << ", for example " << named
                             << "; " << dataset.file();
  }
  return usable;
}

struct Loader::State {
  struct Job {
    std::vector<Row> rows;
    Cursor after;  // of the step that the micro-batch belongs to
  };
  struct Ready {
    Batch batch;
    Cursor after;
  };

  Datasets datasets;
  std::shared_ptr<const Sampler> sampler;
  BatchSpec spec;
  Slice slice;
  Cursor dispatched, returned;
  std::vector<Row> slice_rows;  // of the step being dispatched
  int64_t num_micro_batches = 0, next_micro_batch = 0;
  double waited_s = 0;
  std::unique_ptr<OrderedWorkers<Job, Ready>> workers;  // last: its threads use all of the above

  /// Called by one reader at a time.
  Job next_job() {
    if (next_micro_batch == 0) {
      std::vector<Row> rows = sampler->next(dispatched);
      const auto num_rows = static_cast<int64_t>(rows.size());
      const int64_t begin = slice.index * num_rows / slice.count, end = (slice.index + 1) * num_rows / slice.count;
      slice_rows.assign(std::make_move_iterator(rows.begin() + begin), std::make_move_iterator(rows.begin() + end));
    }
    const auto num_rows = static_cast<int64_t>(slice_rows.size());
    const int64_t begin = std::min(num_rows, next_micro_batch * spec.rows_per_micro_batch);
    const int64_t end = std::min(num_rows, begin + spec.rows_per_micro_batch);
    next_micro_batch = (next_micro_batch + 1) % num_micro_batches;
    return {.rows = {slice_rows.begin() + begin, slice_rows.begin() + end}, .after = dispatched};
  }
};

Loader::Loader(Datasets datasets, std::shared_ptr<const Sampler> sampler, Options options, Slice slice, Cursor start)
    : state_(new State{.datasets = std::move(datasets),
                       .sampler = std::move(sampler),
                       .spec = options.batch,
                       .slice = slice,
                       .dispatched = start,
                       .returned = start}) {
  assert(slice.count > 0 && slice.index >= 0 && slice.index < slice.count);
  HANOK_REQUIRE(options.batch.rows_per_micro_batch > 0, kConfig)
      << "rows_per_micro_batch: got " << options.batch.rows_per_micro_batch << ", expected at least 1";
  State& state = *state_;
  state.num_micro_batches =
      ceil_div(ceil_div(state.sampler->rows_per_step(), slice.count), options.batch.rows_per_micro_batch);
  state.workers = std::make_unique<OrderedWorkers<State::Job, State::Ready>>(
      options.reader_threads,
      options.prefetch_steps * state.num_micro_batches,
      [&state] { return std::optional(state.next_job()); },
      [&state](State::Job& job) {
        return State::Ready{read_batch(state.datasets, job.rows, state.spec, nullptr), job.after};
      });
}

Loader::~Loader() = default;

std::vector<Batch> Loader::next_step() {
  const double begin = now_s();
  std::vector<Batch> batches;
  while (static_cast<int64_t>(batches.size()) < state_->num_micro_batches) {
    std::optional<State::Ready> ready = state_->workers->take();
    batches.push_back(std::move(ready->batch));
    state_->returned = ready->after;
  }
  state_->waited_s += now_s() - begin;
  return batches;
}

Cursor Loader::cursor() const {
  return state_->returned;
}
double Loader::waited_s() {
  return std::exchange(state_->waited_s, 0);
}

std::vector<Row> evaluation_rows(const Dataset& dataset, int dataset_number, int64_t seq_len) {
  std::vector<Row> rows;
  int64_t room = 0;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const int64_t num_tokens = dataset.num_tokens(i);
    if (rows.empty() || num_tokens > room) {
      rows.emplace_back();
      room = seq_len;
    }
    rows.back().push_back({dataset_number, i});
    room -= num_tokens;
  }
  return rows;
}

struct RowReader::State {
  Datasets datasets;
  std::vector<std::vector<Row>> micro_batches;
  BatchSpec spec;
  ChangeSample change;
  size_t next = 0;
  std::unique_ptr<OrderedWorkers<std::vector<Row>, Batch>> workers;  // last: its threads use all of the above
};

RowReader::RowReader(Datasets datasets,
                     std::vector<std::vector<Row>> micro_batches,
                     LoaderOptions options,
                     ChangeSample change)
    : state_(new State{.datasets = std::move(datasets),
                       .micro_batches = std::move(micro_batches),
                       .spec = options.batch,
                       .change = std::move(change)}) {
  State& state = *state_;
  state.workers = std::make_unique<OrderedWorkers<std::vector<Row>, Batch>>(
      options.reader_threads,
      options.prefetch_steps + options.reader_threads,
      [&state]() -> std::optional<std::vector<Row>> {
        if (state.next == state.micro_batches.size()) return std::nullopt;
        return std::move(state.micro_batches[state.next++]);
      },
      [&state](std::vector<Row>& rows) { return read_batch(state.datasets, rows, state.spec, state.change); });
}

RowReader::~RowReader() = default;
std::optional<Batch> RowReader::next() {
  return state_->workers->take();
}

}  // namespace hanok
