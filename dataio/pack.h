// User files -> one packed HDF5 file (dataio/format.md): tokenised, checked, with pictures inside; keyed by content,
// resumable.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "configs/schema/config.h"
#include "dataio/chat.h"
#include "dataio/image.h"
#include "dataio/tokenizer.h"
#include "dataio/vision_prep.h"

namespace hanok {

/// What turns a record into token ids. Everything in it is part of the content key.
struct SampleEncoder {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const ChatTemplate> chat;
  VisionPrep vision;
  int64_t image_token = 151655, video_token = 151656;
  int64_t vocab = 0;  // ids must be below
};

/// Skipped records by reason ("image_missing", "answer_invalid", "too_many_pixels", ...).
struct BadSamples {
  std::map<std::string, int64_t> by_reason;
  int64_t total() const;
};

struct PackReport {
  std::string file;  // the HDF5 file
  bool was_cached = false;
  int64_t num_samples = 0, num_images = 0, num_tokens = 0;
  BadSamples bad;
  std::string bad_list;  // file with one line a skipped record: number, id, reason, detail; empty if none
  double seconds = 0;
};

struct PackProgress {
  int64_t done = 0, total = 0;  // records
};

/// Packs one dataset into data.cache, or returns the finished file of an earlier call with the same content. An
/// interrupted pack goes on where it stopped. Memory is bounded by the queue of records in flight, whatever the size of
/// the data. `kind: packed`: checks schema and checksums of the given file. errors: kData under on_bad_sample: fail
/// (the first wrong record: file, row, column, what to do), or when the share of wrong
///         ones exceeds max_bad_share, or all are wrong; kIo for the file system
PackReport pack_dataset(const std::string& name,
                        const DatasetConfig& dataset,
                        const DataConfig& data,
                        const SampleEncoder& encoder,
                        const std::function<void(const PackProgress&)>& progress);

}  // namespace hanok
