// Reads the preprocessor configs of a model folder, in the dialects of transformers 4 and 5.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "dataio/file_io.h"
#include "dataio/store/json_stream.h"
#include "dataio/vision_prep.h"

namespace hanok {
namespace {

using nlohmann::json;

constexpr int64_t kMaxPatch = 1024, kMaxTokens = 1 << 20;  // patch, merge and tokens multiply to less than 2^63

/// One JSON object with the file it is from. A null counts as left out.
struct Section {
  json values;
  std::string where;

  bool has(const std::string& key) const { return values.contains(key) && !values[key].is_null(); }
  void require(bool holds, const std::string& key, std::string_view expected) const {
    HANOK_REQUIRE(holds, kData) << "vision config: got " << key << " = " << values.value(key, json()).dump()
                                << ", expected " << expected << "; " << where
                                << "; use the processor files of a Qwen3-VL folder";
  }
  /// The default limit is above any count of pixels, and far enough below 2^63 for what is computed from it.
  int64_t positive(const std::string& key, int64_t fallback, int64_t limit = int64_t{1} << 40) const {
    if (!has(key)) return fallback;
    const bool is_count = values[key].is_number_unsigned() && values[key].get<uint64_t>() <= uint64_t(limit);
    require(is_count && values[key].get<int64_t>() > 0, key, concat("an integer from 1 to ", limit));
    return values[key].get<int64_t>();
  }
  double positive_number(const std::string& key, double fallback) const {
    if (!has(key)) return fallback;
    constexpr double kLimit = 1e6;
    const double value = values[key].is_number() ? values[key].get<double>() : 0;
    require(value > 0 && value <= kLimit, key, "a number above 0 and up to 1000000");
    return value;
  }
  bool flag(const std::string& key, bool fallback) const {
    if (!has(key)) return fallback;
    require(values[key].is_boolean(), key, "true or false");
    return values[key].get<bool>();
  }
  std::array<double, 3> channels(const std::string& key, const std::array<double, 3>& fallback) const {
    if (!has(key)) return fallback;
    const json& value = values[key];
    if (value.is_number()) return {value.get<double>(), value.get<double>(), value.get<double>()};
    const bool is_triple = value.is_array() && value.size() == 3 &&
                           std::all_of(value.begin(), value.end(), [](const json& v) { return v.is_number(); });
    require(is_triple, key, "a list of three numbers");
    return {value[0].get<double>(), value[1].get<double>(), value[2].get<double>()};
  }
};

std::optional<Section> read_section(const std::filesystem::path& file, const char* nested = nullptr) {
  std::error_code ignored;  // what cannot be seen counts as absent
  if (!std::filesystem::exists(file, ignored)) return {};
  Section section{read_json(read_file(file.string()), file.string()), file.string()};
  HANOK_REQUIRE(section.values.is_object(), kData)
      << "vision config: got a file that is no JSON object, expected one; " << file.string();
  if (!nested) return section;
  if (!section.has(nested)) return {};
  section.require(section.values[nested].is_object(), nested, "an object");
  return Section{json(section.values[nested]), section.where + ", key " + nested};
}

std::optional<Section> first_of(std::optional<Section> a, std::optional<Section> b) {
  return a ? a : b;
}

void require_known_steps(const Section& section, const char* class_key, const std::vector<std::string>& classes) {
  if (section.has(class_key)) {
    const bool is_known = std::any_of(classes.begin(), classes.end(), [&](const std::string& name) {
      return section.values[class_key] == json(name);
    });
    section.require(is_known, class_key, concat("one of ", classes));
  }
  section.require(!section.has("resample") || section.values["resample"] == 3, "resample", "3 (bicubic)");
  for (const char* key : {"do_resize", "do_rescale", "do_normalize"})
    section.require(section.flag(key, true), key, "true");
  for (const char* key : {"do_center_crop", "do_pad"}) section.require(!section.flag(key, false), key, "false");
}

/// The pixel limits {shortest_edge, longest_edge} of key `size`, whose names are about areas here.
void read_size(const Section& section, int64_t& min_pixels, int64_t& max_pixels) {
  if (!section.has("size")) return;
  const json& size = section.values["size"];
  section.require(size.is_object() && size.contains("shortest_edge") && size.contains("longest_edge"),
                  "size",
                  "{shortest_edge, longest_edge}, in pixels");
  const Section inner{size, section.where + ", key size"};
  min_pixels = inner.positive("shortest_edge", min_pixels);
  max_pixels = inner.positive("longest_edge", max_pixels);
}

void read_common(const Section& section, VisionPrep& prep) {
  prep.patch = section.positive("patch_size", prep.patch, kMaxPatch);
  prep.temporal_patch = section.positive("temporal_patch_size", prep.temporal_patch, kMaxPatch);
  prep.merge = section.positive("merge_size", prep.merge, kMaxPatch);
  prep.mean = section.channels("image_mean", prep.mean);
  prep.std = section.channels("image_std", prep.std);
  const bool divides = std::find(prep.std.begin(), prep.std.end(), 0.0) == prep.std.end();
  section.require(divides, "image_std", "numbers other than zero");
  prep.rescale = section.positive_number("rescale_factor", prep.rescale);
}

VisionPrep read_image(const Section& section) {
  require_known_steps(section, "image_processor_type", {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"});
  VisionPrep prep;
  prep.patch = 14;
  prep.min_pixels = 56 * 56;
  prep.max_pixels = 28 * 28 * 1280;
  prep.mean = {0.48145466, 0.4578275, 0.40821073};
  prep.std = {0.26862954, 0.26130258, 0.27577711};
  read_common(section, prep);
  read_size(section, prep.min_pixels, prep.max_pixels);
  prep.min_pixels = section.positive("min_pixels", prep.min_pixels);
  prep.max_pixels = section.positive("max_pixels", prep.max_pixels);
  return prep;
}

VisionPrep read_video(const Section& section) {
  require_known_steps(section, "video_processor_type", {"Qwen3VLVideoProcessor"});
  section.require(!section.has("num_frames"), "num_frames", "none: the number follows from fps");
  VisionPrep prep;
  prep.video_min_pixels = 128 * 32 * 32;
  prep.video_max_pixels = 768 * 32 * 32;
  read_common(section, prep);
  read_size(section, prep.video_min_pixels, prep.video_max_pixels);
  prep.fps = section.positive_number("fps", prep.fps);
  prep.min_frames = section.positive("min_frames", prep.min_frames);
  prep.max_frames = section.positive("max_frames", prep.max_frames);
  prep.sample_frames = section.flag("do_sample_frames", true);
  prep.cap_pixels_per_frame = section.flag("cap_pixels_per_frame", false);
  prep.max_video_tokens = section.positive("max_video_tokens", prep.max_video_tokens, kMaxTokens);
  return prep;
}

void require_agreement(const VisionPrep& image, const VisionPrep& video, const Section& section) {
  const bool same_patches =
      image.patch == video.patch && image.temporal_patch == video.temporal_patch && image.merge == video.merge;
  HANOK_REQUIRE(same_patches, kData) << "vision config: got videos with patch_size, temporal_patch_size, merge_size "
                                     << video.patch << ", " << video.temporal_patch << ", " << video.merge
                                     << ", expected those of pictures " << image.patch << ", " << image.temporal_patch
                                     << ", " << image.merge << "; " << section.where
                                     << "; make both files say the same";
  const bool same_levels = image.mean == video.mean && image.std == video.std && image.rescale == video.rescale;
  HANOK_REQUIRE(same_levels, kData) << "vision config: got videos with image_mean " << video.mean << " and image_std "
                                    << video.std << ", expected those of pictures " << image.mean << " and "
                                    << image.std << ", and one rescale_factor; " << section.where
                                    << "; make both files say the same";
}

}  // namespace

VisionPrep vision_prep_from_folder(const std::string& folder) {
  const std::filesystem::path path = folder;
  const auto nested = [&path](const char* key) { return read_section(path / "processor_config.json", key); };
  const auto legacy = read_section(path / "preprocessor_config.json");
  const auto image_section = first_of(nested("image_processor"), legacy);
  // As transformers: a folder without a word on videos lends them the image file.
  const auto video_section =
      first_of(first_of(nested("video_processor"), read_section(path / "video_preprocessor_config.json")), legacy);
  if (!image_section && !video_section) return {};
  if (!video_section) return read_image(*image_section);
  const VisionPrep video = read_video(*video_section);
  if (!image_section) return video;
  VisionPrep prep = video;
  const VisionPrep image = read_image(*image_section);
  prep.min_pixels = image.min_pixels;
  prep.max_pixels = image.max_pixels;
  require_agreement(image, video, *video_section);
  return prep;
}

}  // namespace hanok
