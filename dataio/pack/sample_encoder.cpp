#include <algorithm>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "dataio/import/vqa_csv.h"
#include "dataio/pack.h"
#include "dataio/pack/encode.h"

namespace hanok {

SampleEncoder sample_encoder(const std::string& folder, const ModelConfig& model, const DataConfig& data) {
  SampleEncoder encoder{.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::from_folder(folder)),
                        .chat = chat_template_from_folder(folder, data.chat_template),
                        .vision = vision_prep_from_folder(folder),
                        .image_token = model.image_token,
                        .video_token = model.video_token,
                        .vocab = model.decoder.vocab};
  HANOK_REQUIRE(encoder.vocab == 0 || encoder.tokenizer->vocab_size() <= encoder.vocab, kConfig)
      << "model.decoder.vocab: got " << encoder.vocab << ", expected at least the " << encoder.tokenizer->vocab_size()
      << " tokens of the tokenizer; " << folder << "; use the tokenizer of the model, or more rows";
  VisionPrep& vision = encoder.vision;
  if (model.tower.type != "none") {
    vision.patch = model.tower.patch;
    vision.temporal_patch = model.tower.temporal_patch;
    vision.merge = model.connector.merge;
  }
  if (data.min_pixels > 0) vision.min_pixels = data.min_pixels;
  if (data.max_pixels > 0) vision.max_pixels = data.max_pixels;
  HANOK_REQUIRE(vision.min_pixels <= vision.max_pixels, kConfig)
      << "data.min_pixels, data.max_pixels: got " << vision.min_pixels << " and " << vision.max_pixels
      << " together with the model folder's, expected the first to be at most the second; set both";
  // Without them a turn would be spelled out in bytes, and nothing would say so.
  for (const char* text : {"<|im_start|>", "<|im_end|>"})
    HANOK_REQUIRE(encoder.tokenizer->id(text).has_value(), kData)
        << "tokenizer: got no token " << text << ", expected it for the turns of chat template " << encoder.chat->name()
        << "; " << folder << "; use the tokenizer of the model";
  const struct {
    const char *key, *text;
    int64_t id;
  } placeholders[] = {{"model.image_token", "<|image_pad|>", model.image_token},
                      {"model.video_token", "<|video_pad|>", model.video_token},
                      {"model.vision_start_token", "<|vision_start|>", model.vision_start_token},
                      {"model.vision_end_token", "<|vision_end|>", model.vision_end_token}};
  if (model.tower.type == "none") {  // text only: nothing is written over them
    encoder.image_token = encoder.video_token = SampleEncoder::kNoToken;
    return encoder;
  }
  for (const auto& [key, text, id] : placeholders) {
    const std::optional<int32_t> found = encoder.tokenizer->id(text);
    HANOK_REQUIRE(!found || *found == id, kConfig)
        << key << ": got " << id << ", expected " << *found << ", which is " << text << " in " << folder
        << "; set the key to it, or use the tokenizer of the model";
    // A text model's tokenizer may lack them: then pictures cannot be packed, and the first one says so.
  }
  return encoder;
}

Sample with_permuted_choices(const Sample& sample,
                             const std::vector<int>& permutation,
                             const std::string& prompt,
                             const SampleEncoder& encoder) {
  std::vector<int> sorted = permutation, expected(sample.choices.size());
  std::sort(sorted.begin(), sorted.end());
  std::iota(expected.begin(), expected.end(), 0);
  HANOK_REQUIRE(!expected.empty() && sorted == expected, kData)
      << "choices of sample " << sample.id << ": got the order " << permutation << ", expected each of " << expected
      << " once";
  Sample shown = sample;
  const auto in_file = [&](int position) {
    return sample.permutation.empty() ? position : sample.permutation[static_cast<size_t>(position)];
  };
  shown.permutation = permutation;
  if (sample.answer >= 0) {
    const auto place = std::find(permutation.begin(), permutation.end(), in_file(sample.answer));
    shown.answer = static_cast<int>(place - permutation.begin());
  }
  std::vector<std::string> choices;
  for (int original : permutation) choices.push_back(sample.choices[static_cast<size_t>(original)]);
  std::vector<Message> messages = {vqa_question("", sample.question, choices, prompt)};
  if (shown.answer >= 0) {
    messages.push_back({"assistant", {{.kind = ContentPart::Kind::kText, .text = choice_letter(shown.answer)}}});
  }
  tokenize_chat(messages, std::vector<std::vector<double>>(sample.vision.size()), encoder, shown);
  return shown;
}

}  // namespace hanok
