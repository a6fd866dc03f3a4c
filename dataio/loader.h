// Batches of one rank, prepared ahead by reader threads: the main thread waits here and only here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "configs/schema/config.h"
#include "dataio/batch.h"
#include "dataio/dataset.h"
#include "dataio/image.h"
#include "dataio/pack.h"
#include "dataio/sampler.h"
#include "dataio/vision_prep.h"

namespace hanok {

enum class TokenWeight { kToken, kSqrt, kSample };  // 1, 1/sqrt(n), 1/n
enum class WeightUnit { kSample, kTurn };           // n counts the labels of the whole sample, or of one assistant turn

/// How samples become micro-batches.
struct BatchSpec {
  int64_t seq_len = 0;
  int64_t rows_per_micro_batch = 1;
  int64_t pad_multiple = 1;  // T of a micro-batch is padded at its tail to a multiple (tp * cp)
  TokenWeight weight = TokenWeight::kSqrt;
  WeightUnit unit = WeightUnit::kSample;
  VisionPrep vision;
  ImageLimits image_limits;
  bool pin_memory = false;
};

/// Samples -> one micro-batch. Pure. n_i is counted on the whole sample. Weights and targets follow algorithms.md D.
/// errors: kData naming the sample when placeholders and merged vision tokens differ in number
Batch make_batch(const std::vector<Sample>& samples, const std::vector<SampleRef>& refs, const BatchSpec& spec);
/// M-RoPE positions of one sample [3, T]. source: transformers Qwen3VLModel.get_rope_index
Tensor mrope_positions(const Sample& sample, int64_t merge);

/// The batch spec of a stage; `pad_multiple` is what the layout cuts T by.
BatchSpec batch_spec(const StageConfig& stage,
                     const DataConfig& data,
                     const SampleEncoder& encoder,
                     int64_t pad_multiple,
                     bool pin_memory);

/// What a stage can learn from: samples with labels that fit a row. The others are counted by reason ("too_long",
/// "no_labels") and a warning names three of them. errors: kData if none is left
struct UsableSamples {
  Sampler::Source source;
  BadSamples left_out;
};
UsableSamples usable_samples(const Dataset& dataset, double share, int64_t seq_len);

using Datasets = std::vector<std::shared_ptr<const Dataset>>;

struct LoaderOptions {
  BatchSpec batch;
  int64_t reader_threads = 1;
  int64_t prefetch_steps = 2;
};

class Loader {
 public:
  using Options = LoaderOptions;
  /// Rows of a step are dealt to slices in contiguous blocks: slice i of n gets rows [i*R/n, (i+1)*R/n), in
  /// micro-batches of rows_per_micro_batch. The union over slices is the same whatever n. Every slice gets the same
  /// number of micro-batches; the last ones of a slice with fewer rows hold padding only.
  Loader(Datasets datasets, std::shared_ptr<const Sampler> sampler, Options options, Slice slice, Cursor start);
  /// Waits for the pictures under way, no longer.
  ~Loader();
  /// The micro-batches of the next step. errors: what the readers met, rethrown here with the sample named
  std::vector<Batch> next_step();
  /// Where the step after the last one returned begins.
  Cursor cursor() const;
  double waited_s();  // in next_step, since the last call of waited_s()

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Every sample of a dataset once, in order, packed into rows (for evaluation): slice i of n takes every n-th row. A
/// sample longer than seq_len has a row of its own.
std::vector<Row> evaluation_rows(const Dataset& dataset, int dataset_number, int64_t seq_len);

/// Micro-batches of given rows, prepared ahead by reader threads, in order.
class RowReader {
 public:
  /// `change` (may be empty): what is done to a sample before it is batched; called from reader threads.
  RowReader(Datasets datasets,
            std::vector<std::vector<Row>> micro_batches,
            LoaderOptions options,
            std::function<Sample(const SampleRef&, Sample)> change);
  ~RowReader();
  /// Nothing after the last one. errors: what the readers met, with the sample named
  std::optional<Batch> next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
