#include "dataio/pack/encode.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "base/error.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using Kind = ContentPart::Kind;
constexpr double kUnknownFps = 24;  // what transformers takes where nobody knows

struct Picture {
  std::vector<uint8_t> bytes;
  ImageSize size;
};

std::vector<uint8_t> read_picture_bytes(const std::string& path, const ImageLimits& limits) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) throw WrongRecord("image_missing", path + ": no such file");
  if (!fs::is_regular_file(status)) throw WrongRecord("image_unreadable", path + ": not a file");
  const auto size = static_cast<int64_t>(fs::file_size(path, error));
  if (size > limits.max_encoded_bytes) {
    throw WrongRecord("too_many_bytes",
                      concat(path, ": got ", size, " bytes, expected at most ", limits.max_encoded_bytes));
  }
  std::ifstream stream(path, std::ios::binary);
  std::vector<uint8_t> bytes(static_cast<size_t>(std::max<int64_t>(size, 0)));
  if (!stream.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
    throw WrongRecord("image_unreadable", concat(path, ": ", std::strerror(errno)));
  }
  return bytes;
}

void require_pixels(const std::string& path, ImageSize size, const char* where_from, const ImageLimits& limits) {
  if (size.height * size.width <= limits.max_pixels) return;
  throw WrongRecord("too_many_pixels",
                    concat(path,
                           ": got ",
                           size.width,
                           " x ",
                           size.height,
                           " pixels",
                           where_from,
                           ", expected at most ",
                           limits.max_pixels,
                           "; make it smaller, or raise data.max_image_pixels"));
}

Picture read_picture(const std::string& path, const ImageLimits& limits) {
  Picture picture{.bytes = read_picture_bytes(path, limits)};
  // Dimensions are judged here, so that "too many" and "damaged" are counted apart.
  ImageLimits header_only = limits;
  header_only.max_pixels = std::numeric_limits<int64_t>::max();
  try {
    const ImageInfo info = inspect_image(picture.bytes, header_only);
    picture.size = {info.height, info.width};
  } catch (const Error& error) {
    throw WrongRecord("image_damaged", path + ": " + error.what());
  }
  require_pixels(path, picture.size, "", limits);
  return picture;
}

/// Decoded once here, whatever is stored: a damaged picture must not be met first in the middle of a training.
std::vector<uint8_t> stored_frame(const std::string& path,
                                  Picture picture,
                                  ImageSize prepared,
                                  const EncodeOptions& options) {
  Tensor rgb_CHW;
  try {
    rgb_CHW = decode_image(picture.bytes, options.limits);
  } catch (const Error& error) {
    throw WrongRecord("image_damaged", path + ": " + error.what());
  }
  if (!options.store_resized) return std::move(picture.bytes);
  const Tensor pixels_HWC = resize_bicubic(rgb_CHW, prepared).permute({1, 2, 0}).contiguous();
  const auto* begin = pixels_HWC.const_data_ptr<uint8_t>();
  return {begin, begin + pixels_HWC.numel()};
}

template <class Function>
ImageSize prepared(const std::string& path, Function size) {
  try {
    return size();
  } catch (const Error& error) {
    throw WrongRecord("picture_shape", path + ": " + error.what());
  }
}

/// As the configuration says, or the record where it asks for another size.
ImageSize asked_size(const ContentPart& part, ImageSize size, VisionPrep prep) {
  if (part.resized_height > 0) return prepared_size({part.resized_height, part.resized_width}, prep);
  if (part.min_pixels > 0) prep.min_pixels = part.min_pixels;
  if (part.max_pixels > 0) prep.max_pixels = part.max_pixels;
  if (part.min_pixels == 0) prep.min_pixels = std::min(prep.min_pixels, prep.max_pixels);
  prep.max_pixels = std::max(prep.min_pixels, prep.max_pixels);
  return prepared_size(size, prep);
}

VisionItem image_item(const std::string& path, const ContentPart& part, const EncodeOptions& options) {
  const VisionPrep& prep = options.encoder.vision;
  Picture picture = read_picture(path, options.limits);
  const ImageSize size = prepared(path, [&] { return asked_size(part, picture.size, prep); });
  if (part.min_pixels > 0) require_pixels(path, size, " after resizing, as its record asks", options.limits);
  VisionItem item{.t = 1, .h = size.height / prep.patch, .w = size.width / prep.patch};
  item.frames_are_raw = options.store_resized;
  item.frames.push_back(stored_frame(path, std::move(picture), size, options));
  return item;
}

VisionItem video_item(const std::string& folder,
                      double fps,
                      const EncodeOptions& options,
                      std::vector<double>& timestamps) {
  const VisionPrep& prep = options.encoder.vision;
  const std::vector<std::string> files = video_frames(folder);
  const VideoSampling sampling = sample_video(static_cast<int64_t>(files.size()), fps > 0 ? fps : kUnknownFps, prep);
  const auto num_frames = static_cast<int64_t>(sampling.frames.size());
  VisionItem item{.is_video = true};
  item.frames_are_raw = options.store_resized;
  ImageSize first, size;
  for (int64_t frame : sampling.frames) {
    const std::string& path = files[static_cast<size_t>(frame)];
    Picture picture = read_picture(path, options.limits);
    if (item.frames.empty()) {
      first = picture.size;
      size = prepared(folder, [&] { return prepared_video_size(num_frames, first, prep); });
    }
    if (picture.size != first) {
      throw WrongRecord("video_frames_differ",
                        concat(path,
                               ": got ",
                               picture.size.width,
                               " x ",
                               picture.size.height,
                               " pixels, expected ",
                               first.width,
                               " x ",
                               first.height,
                               " as the first frame"));
    }
    item.frames.push_back(stored_frame(path, std::move(picture), size, options));
  }
  item.t = static_cast<int64_t>(sampling.timestamps.size());
  item.h = size.height / prep.patch;
  item.w = size.width / prep.patch;
  timestamps = sampling.timestamps;
  return item;
}

std::string repeated(std::string_view text, int64_t count) {
  std::string out;
  out.reserve(text.size() * static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out += text;
  return out;
}

constexpr std::string_view kVisionStart = "<|vision_start|>", kVisionEnd = "<|vision_end|>";
constexpr std::string_view kImagePad = "<|image_pad|>", kVideoPad = "<|video_pad|>";

/// What stands for a picture or video in the text that is tokenised.
/// source: transformers 5.17 Qwen3VLProcessor.replace_image_token, replace_video_token, which replace the pad alone: a
/// video keeps the start and end of its placeholder around those of its temporal patches.
std::string expanded(const VisionItem& item, const std::vector<double>& timestamps, int64_t merge) {
  const int64_t count = item.h * item.w / (merge * merge);
  std::string text(kVisionStart);
  if (!item.is_video) {
    text += repeated(kImagePad, count);
  } else {
    for (double time : timestamps) {
      char number[64];  // fixed, one decimal, correctly rounded: as Python's f"{time:.1f}"
      const auto end = std::to_chars(number, number + sizeof number, time, std::chars_format::fixed, 1).ptr;
      text += '<';
      text.append(number, end);
      text += " seconds>";
      text += kVisionStart;
      text += repeated(kVideoPad, count);
      text += kVisionEnd;
    }
  }
  return text += kVisionEnd;
}

/// The rendered chat with every placeholder in its full length, and all spans moved along.
RenderedChat with_vision(RenderedChat chat,
                         const std::vector<VisionItem>& items,
                         const std::vector<std::vector<double>>& timestamps,
                         int64_t merge) {
  HANOK_REQUIRE(chat.vision.size() == items.size(), kData)
      << "chat: got " << chat.vision.size() << " placeholders, expected " << items.size() << " as pictures; report it";
  std::string text;
  std::vector<std::pair<int64_t, int64_t>> growth;  // (end of a placeholder, how much the text has grown there)
  int64_t done = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    const Span span = chat.vision[i].placeholder;
    text.append(chat.text, static_cast<size_t>(done), static_cast<size_t>(span.begin - done));
    text += expanded(items[i], timestamps[i], merge);
    done = span.end;
    growth.emplace_back(span.end, static_cast<int64_t>(text.size()) - done);
  }
  text.append(chat.text, static_cast<size_t>(done));
  const auto moved = [&](int64_t byte) {
    const auto after = std::partition_point(growth.begin(), growth.end(), [&](auto& g) { return g.first <= byte; });
    return after == growth.begin() ? byte : byte + std::prev(after)->second;
  };
  for (const VisionSlot& slot : chat.vision) {
    for (const Span& label : chat.labels) {
      if (slot.placeholder.begin < label.end && label.begin < slot.placeholder.end) {
        throw WrongRecord("picture_in_answer", slot.path + ": a picture in an assistant turn cannot be learned");
      }
    }
  }
  for (std::vector<Span>* spans : {&chat.labels, &chat.literal}) {
    for (Span& span : *spans) span = {moved(span.begin), moved(span.end)};
  }
  chat.text = std::move(text);
  return chat;
}

/// A token is a label if all its bytes are.
std::vector<Span> label_tokens(const std::vector<Span>& labels, const std::vector<Span>& offsets) {
  std::vector<Span> spans;
  const auto num_tokens = static_cast<int64_t>(offsets.size());
  int64_t t = 0;
  for (const Span& label : labels) {
    while (t < num_tokens && offsets[static_cast<size_t>(t)].begin < label.begin) ++t;
    const int64_t begin = t;
    while (t < num_tokens && offsets[static_cast<size_t>(t)].end <= label.end) ++t;
    if (t > begin) spans.push_back({begin, t});
  }
  return spans;
}

/// First tokens of each run of placeholders, in order: what the pictures' places are.
void place_vision(const SampleEncoder& encoder, Sample& sample) {
  if (!sample.vision.empty() && encoder.image_token == SampleEncoder::kNoToken)
    throw WrongRecord("picture_for_text_model",
                      concat("got ", sample.vision.size(), " pictures, expected text alone; the model has no tower"));
  const int64_t merge = encoder.vision.merge;
  const auto num_tokens = static_cast<int64_t>(sample.tokens.size());
  int64_t t = 0, num_placed = 0;
  for (VisionItem& item : sample.vision) {
    const auto token = static_cast<int32_t>(item.is_video ? encoder.video_token : encoder.image_token);
    const int64_t count = item.h * item.w / (merge * merge);
    item.token_begins.clear();
    for (int64_t patch = 0; patch < item.t; ++patch) {
      while (t < num_tokens && sample.tokens[static_cast<size_t>(t)] != token) ++t;
      item.token_begins.push_back(t);
      t += count;
      num_placed += count;
    }
  }
  const int64_t num_found = std::count_if(sample.tokens.begin(), sample.tokens.end(), [&](int32_t id) {
    return id == encoder.image_token || id == encoder.video_token;
  });
  HANOK_REQUIRE(num_found >= num_placed, kData)
      << "placeholders: got " << num_found << " tokens, expected " << num_placed << " for the pictures of sample "
      << sample.id << "; the tokenizer must know " << kImagePad << " as " << encoder.image_token << " and " << kVideoPad
      << " as " << encoder.video_token;
  if (num_found > num_placed) {
    throw WrongRecord("vision_token_in_text",
                      concat("got ",
                             num_found,
                             " placeholder tokens, expected ",
                             num_placed,
                             " for its pictures; take <|image_pad|> and <|video_pad|> out of its text"));
  }
}

bool is_picture_name(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".jpg" || extension == ".jpeg" || extension == ".png" || extension == ".webp";
}

/// "2.png" before "10.png": runs of digits compare as numbers.
bool natural_less(const std::string& a, const std::string& b) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (is_digit(a[i]) && is_digit(b[j])) {
      const auto number = [&](const std::string& s, size_t& at) {
        while (at < s.size() && s[at] == '0') ++at;
        const size_t begin = at;
        while (at < s.size() && is_digit(s[at])) ++at;
        return std::string_view(s).substr(begin, at - begin);
      };
      const std::string_view x = number(a, i), y = number(b, j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i;
      ++j;
    }
  }
  if (a.size() - i != b.size() - j) return a.size() - i < b.size() - j;
  return a < b;
}

}  // namespace

std::string picture_path(const std::string& image_root, const std::string& path) {
  return (fs::path(image_root) / path).string();  // an absolute path replaces the root
}

std::vector<std::string> video_frames(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> files;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (is_picture_name(it->path())) files.push_back(it->path().string());
  }
  if (error) throw WrongRecord("image_missing", concat(folder, ": expected a folder of pictures; ", error.message()));
  if (files.empty()) throw WrongRecord("image_missing", folder + ": got no picture in this folder");
  std::sort(files.begin(), files.end(), natural_less);
  return files;
}

void tokenize_chat(const std::vector<Message>& messages,
                   const std::vector<std::vector<double>>& timestamps,
                   const SampleEncoder& encoder,
                   Sample& sample) {
  const bool has_answer = !messages.empty() && messages.back().role == "assistant";
  RenderedChat chat;
  try {
    chat = encoder.chat->render(messages, /*add_generation_prompt=*/!has_answer, /*continue_final_message=*/false);
  } catch (const Error& error) {
    throw WrongRecord("chat_invalid", error.what());
  }
  chat = with_vision(std::move(chat), sample.vision, timestamps, encoder.vision.merge);
  Encoding encoding = encoder.tokenizer->encode_with_offsets(chat.text, chat.literal);
  sample.tokens = std::move(encoding.ids);
  if (encoder.vocab > 0) {
    const auto highest = std::max_element(sample.tokens.begin(), sample.tokens.end());
    HANOK_REQUIRE(highest == sample.tokens.end() || *highest < encoder.vocab, kData)
        << "token id: got " << *highest << ", expected below model.decoder.vocab = " << encoder.vocab << "; sample "
        << sample.id << "; the tokenizer and the model do not belong together";
  }
  sample.labels = has_answer ? label_tokens(chat.labels, encoding.offsets) : std::vector<Span>();
  place_vision(encoder, sample);
}

Sample encode_record(const Record& record, const EncodeOptions& options) {
  Sample sample{.id = record.id};
  sample.num_choices = static_cast<int>(record.choices.size());
  sample.answer = record.answer;
  sample.question = record.question;
  sample.choices = record.choices;
  std::vector<std::vector<double>> timestamps;
  size_t num_videos = 0;
  for (const Message& message : record.messages) {
    for (const ContentPart& part : message.content) {
      if (part.kind == Kind::kText) continue;
      const std::string path = picture_path(options.image_root, part.text);
      std::vector<double>& times = timestamps.emplace_back();
      sample.vision.push_back(part.kind == Kind::kImage
                                  ? image_item(path, part, options)
                                  : video_item(path, record.video_fps.at(num_videos++), options, times));
    }
  }
  tokenize_chat(record.messages, timestamps, options.encoder, sample);
  return sample;
}

}  // namespace hanok
