// Batches of one rank, prepared ahead by reader threads: the main thread waits here and only here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dataio/batch.h"
#include "dataio/dataset.h"
#include "dataio/image.h"
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

class Loader {
 public:
  struct Options {
    BatchSpec batch;
    int reader_threads = 1;
    int prefetch_steps = 2;
  };
  /// Rows of a step are dealt to slices in contiguous blocks: slice i of n gets rows [i*R/n, (i+1)*R/n), in
  /// micro-batches of rows_per_micro_batch. The union over slices is the same whatever n.
  Loader(std::vector<std::shared_ptr<const Dataset>> datasets,
         std::shared_ptr<const Sampler> sampler,
         Options options,
         Slice slice,
         Cursor start);
  ~Loader();
  /// The micro-batches of the next step. errors: what the readers met, rethrown here
  std::vector<Batch> next_step();
  /// Where the step after the last one returned begins.
  Cursor cursor() const;
  double waited_s() const;  // since the last call of waited_s()

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Every sample of a dataset once, in order, packed into rows (for evaluation): slice i of n takes every n-th row.
std::vector<Row> evaluation_rows(const Dataset& dataset, int dataset_number, int64_t seq_len);

}  // namespace hanok
