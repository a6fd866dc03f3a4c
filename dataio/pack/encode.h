// One record -> one sample: pictures opened, checked and measured, the chat rendered, text tokenised, labels placed.
#pragma once

#include <string>
#include <vector>

#include "dataio/image.h"
#include "dataio/import/record.h"
#include "dataio/pack.h"
#include "dataio/sample.h"

namespace hanok {

struct EncodeOptions {
  const SampleEncoder& encoder;
  std::string image_root;
  ImageLimits limits;
  bool store_resized = false;
};

/// errors: WrongRecord for what is wrong with this record; kData for what is wrong with all of them (ids beyond the
///         model's vocabulary)
Sample encode_record(const Record& record, const EncodeOptions& options);

/// The file that a path in a record means.
std::string picture_path(const std::string& image_root, const std::string& path);
/// Pictures of a video folder, in the order of their names, numbers compared as numbers.
/// errors: WrongRecord if there is no such folder or nothing in it
std::vector<std::string> video_frames(const std::string& folder);

/// Fills tokens, labels and the places of `sample.vision` from the chat. `timestamps` of each picture (empty) or video
/// (one per temporal patch). A chat that does not end with the assistant gets the generation prompt and no labels.
void tokenize_chat(const std::vector<Message>& messages,
                   const std::vector<std::vector<double>>& timestamps,
                   const SampleEncoder& encoder,
                   Sample& sample);

}  // namespace hanok
