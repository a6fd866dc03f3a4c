// User files -> one packed HDF5 file (dataio/pack/format.md): tokenised, checked, with pictures inside; keyed by
// content, resumable.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "configs/schema/config.h"
#include "dataio/chat.h"
#include "dataio/sample.h"
#include "dataio/tokenizer.h"
#include "dataio/vision_prep.h"

namespace hanok {

/// What turns a record into token ids. Everything in it is part of the content key.
struct SampleEncoder {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat;
  VisionPrep vision;
  int64_t image_token = 151655, video_token = 151656;  // kNoToken: a text model, which takes no pictures
  static constexpr int64_t kNoToken = -1;
  int64_t vocab = 0;  // ids must be below; 0: not checked
};
/// The encoder of a run: tokenizer, template and picture sizes of `folder` (model.tokenizer, else model.path), patches
/// of the model, limits that the config replaces. errors: kData; kConfig if tokenizer and model name other placeholders
SampleEncoder sample_encoder(const std::string& folder, const ModelConfig& model, const DataConfig& data);

/// Skipped records by reason ("image_missing", "answer_invalid", "too_many_pixels", ...; all are in pack/format.md).
struct BadSamples {
  std::map<std::string, int64_t> by_reason;
  int64_t total() const;
};

struct PackReport {
  std::string file;  // the HDF5 file
  bool was_cached = false;
  int64_t num_records = 0, num_samples = 0, num_images = 0, num_tokens = 0;  // images: pictures and video frames
  BadSamples bad;
  std::string bad_list;  // file with one JSON object a skipped record: number, id, reason, detail; empty if none
  double seconds = 0;
};

struct PackProgress {
  int64_t done = 0, total = 0;  // records
};

/// Packs one dataset into data.cache, or returns the finished file of an earlier call with the same content. An
/// interrupted pack goes on where it stopped, and of two processes that want the same file one waits. Memory is bounded
/// by one block and the records in flight, whatever the size of the data; the file does not depend on the number of
/// threads. `kind: packed`: checks schema, every checksum, and that the encoder is the one it was packed with.
/// errors: kData under on_bad_sample: fail (the first wrong record: file, row, column, what to do), or when the share
/// of
///         wrong ones exceeds max_bad_share, or all are wrong; kConfig; kIo for the file system
PackReport pack_dataset(const std::string& name,
                        const DatasetConfig& dataset,
                        const DataConfig& data,
                        const SampleEncoder& encoder,
                        const std::function<void(const PackProgress&)>& progress);

/// The multiple choice with its choices in another order: shown position i has the file's choice permutation[i].
/// `prompt`: Dataset::provenance("prompt"). errors: kData if the sample is no multiple choice of that size
Sample with_permuted_choices(const Sample& sample,
                             const std::vector<int>& permutation,
                             const std::string& prompt,
                             const SampleEncoder& encoder);

}  // namespace hanok
