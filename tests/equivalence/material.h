// What every layout trains on in these tests: a small but complete Qwen3-VL, and real digits and texts.
#pragma once

#include <vector>

#include "configs/schema/config.h"
#include "dataio/batch.h"
#include "dataio/loader.h"
#include "dataio/sample.h"
#include "dataio/sampler.h"

namespace hanok {

/// Tower of two blocks with a tap, merger, decoder of three layers. Heads divide by 4, the vocabulary by nothing, and
/// two key/value heads are fewer than the four ranks of tp 4.
ModelConfig small_model(bool tied);
/// The same with eight experts, two of them for each token, in the first and the last layer.
ModelConfig small_moe_model(bool tied);

/// 64 digits with questions (answers of two tokens), 32 GSM8K problems cut to 60 + 90 characters, and conversations of
/// two turns made of two problems each: label counts from 2 to 150. Tokens are bytes.
std::vector<Sample> real_samples();

/// What turns those samples into micro-batches for `small_model`.
BatchSpec small_batches(int64_t pad_multiple);

/// The samples of `rows` as micro-batches of `rows_per_micro_batch`.
std::vector<Batch> batches_of(const std::vector<Sample>& samples,
                              const std::vector<Row>& rows,
                              int64_t rows_per_micro_batch,
                              const BatchSpec& spec);

/// Rows that rank `index` of `count` gets of a step, as Loader deals them.
std::vector<Row> rows_of_slice(const std::vector<Row>& rows, int index, int count);

}  // namespace hanok
