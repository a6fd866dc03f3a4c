#include "trainer/report_examples.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "dataio/image.h"

namespace hanok {
namespace {

constexpr int64_t kNumExamples = 12, kPictures = 4, kPictureSide = 224, kTextBytes = 2000;
constexpr int kJpegQuality = 88;

double confidence(const JudgedSample& sample) {
  return *std::max_element(sample.probabilities.begin(), sample.probabilities.end());
}

bool is_right(const JudgedSample& sample) {
  return sample.probabilities[sample.answer] == confidence(sample);
}

double loss_of(const JudgedSample& sample) {
  return sample.weight > 0 ? sample.weighted_nll / sample.weight : NAN;
}

/// Numbers of the samples that satisfy `is_wanted`, highest `key` first, those of equal key in their order.
template <class Wanted, class Key>
std::vector<int64_t> ranked(const std::vector<JudgedSample>& samples, Wanted&& is_wanted, Key&& key) {
  std::vector<int64_t> out;
  for (size_t i = 0; i < samples.size(); ++i)
    if (is_wanted(samples[i])) out.push_back(static_cast<int64_t>(i));
  std::stable_sort(out.begin(), out.end(), [&](int64_t a, int64_t b) { return key(samples[a]) > key(samples[b]); });
  return out;
}

/// Takes up to `count` that are not there yet.
void take(std::vector<int64_t>& out, const std::vector<int64_t>& from, int64_t count) {
  for (const int64_t index : from) {
    if (count <= 0) return;
    if (std::find(out.begin(), out.end(), index) != out.end()) continue;
    out.push_back(index);
    --count;
  }
}

std::string base64(const std::vector<uint8_t>& bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = uint32_t{bytes[i]} << 16;
    if (n > 1) group |= uint32_t{bytes[i + 1]} << 8;
    if (n > 2) group |= bytes[i + 2];
    for (size_t k = 0; k < 4; ++k) out += k <= n ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

Tensor decoded_CHW(const VisionItem& item,
                   const std::vector<uint8_t>& bytes,
                   int64_t patch,
                   const ImageLimits& limits) {
  if (!item.frames_are_raw) return decode_image(bytes, limits);
  const int64_t height = item.h * patch, width = item.w * patch;
  HANOK_REQUIRE(static_cast<int64_t>(bytes.size()) == 3 * height * width, kData)
      << "raw picture: got " << bytes.size() << " bytes, expected " << 3 * height * width << "; pack the data again";
  return at::from_blob(
      const_cast<uint8_t*>(bytes.data()), {3, height, width}, {int64_t{1}, 3 * width, int64_t{3}}, at::kByte);
}

std::string picture_uri(const Tensor& rgb_CHW) {
  const int64_t height = rgb_CHW.size(1), width = rgb_CHW.size(2), longest = std::max(height, width);
  const auto scaled = [&](int64_t side) { return std::max<int64_t>(1, side * kPictureSide / longest); };
  const Tensor small = longest > kPictureSide ? resize_bicubic(rgb_CHW, {scaled(height), scaled(width)}) : rgb_CHW;
  return "data:image/jpeg;base64," + base64(encode_jpeg(small, kJpegQuality));
}

/// Cut between characters.
std::string shortened(std::string text) {
  if (static_cast<int64_t>(text.size()) <= kTextBytes) return text;
  size_t end = kTextBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + " ...";
}

std::string text_of(const Sample& sample, int64_t begin, int64_t end, const SampleEncoder& encoder) {
  std::vector<int32_t> ids(sample.tokens.begin() + begin, sample.tokens.begin() + end);
  std::erase_if(ids, [&](int32_t id) { return id == encoder.image_token || id == encoder.video_token; });
  return shortened(encoder.tokenizer->decode(ids, /*skip_special=*/true));
}

ReportExample example_of(const Sample& sample,
                         const JudgedSample& judged,
                         const SampleEncoder& encoder,
                         const ImageLimits& limits) {
  ReportExample out{.id = sample.id,
                    .question = shortened(sample.question),
                    .choices = sample.choices,
                    .probabilities = judged.probabilities,
                    .answer = judged.answer,
                    .loss = loss_of(judged)};
  for (const VisionItem& item : sample.vision) {
    out.num_pictures += static_cast<int64_t>(item.frames.size());
    for (const auto& frame : item.frames)
      if (static_cast<int64_t>(out.pictures.size()) < kPictures)
        out.pictures.push_back(picture_uri(decoded_CHW(item, frame, encoder.vision.patch, limits)));
  }
  for (std::string& choice : out.choices) choice = shortened(choice);
  if (!judged.probabilities.empty()) return out;
  const auto num_tokens = static_cast<int64_t>(sample.tokens.size());
  const Span label = sample.labels.empty() ? Span{num_tokens, num_tokens} : sample.labels.front();
  out.question = text_of(sample, 0, label.begin, encoder);
  out.reference = text_of(sample, label.begin, label.end, encoder);
  return out;
}

}  // namespace

std::vector<int64_t> telling_samples(const std::vector<JudgedSample>& samples, int64_t count) {
  const auto is_answered = [](const JudgedSample& s) { return !s.probabilities.empty() && s.answer >= 0; };
  const auto unsureness = [](const JudgedSample& s) { return -confidence(s); };
  std::vector<int64_t> out;
  const auto right = [&](const JudgedSample& s) { return is_answered(s) && is_right(s); };
  const std::vector<int64_t> mistakes = ranked(
      samples, [&](const JudgedSample& s) { return is_answered(s) && !is_right(s); }, confidence);
  take(out, mistakes, (count + 1) / 2);
  take(out, ranked(samples, right, unsureness), (count - static_cast<int64_t>(out.size())) / 2);
  const auto rest = [&] { return count - static_cast<int64_t>(out.size()); };
  take(out, ranked(samples, right, confidence), rest());
  take(out, mistakes, rest());
  take(out,
       ranked(
           samples, [](const JudgedSample& s) { return !s.probabilities.empty(); }, confidence),
       rest());
  const auto is_free = [](const JudgedSample& s) { return s.probabilities.empty() && s.weight > 0; };
  take(out, ranked(samples, is_free, loss_of), (rest() + 1) / 2);
  take(out, ranked(samples, is_free, [](const JudgedSample& s) { return -loss_of(s); }), rest());
  return out;
}

std::vector<ReportExample> report_examples(const Dataset& dataset,
                                           const std::vector<JudgedSample>& samples,
                                           const SampleEncoder& encoder,
                                           const ImageLimits& limits) {
  std::vector<ReportExample> out;
  for (const int64_t index : telling_samples(samples, kNumExamples))
    out.push_back(example_of(dataset.read(index), samples[index], encoder, limits));
  return out;
}

}  // namespace hanok
