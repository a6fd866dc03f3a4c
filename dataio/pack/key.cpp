#include "dataio/pack/key.h"

#include <sys/stat.h>

#include <filesystem>

#include "base/error.h"
#include "dataio/hash.h"
#include "dataio/import/chat_jsonl.h"
#include "dataio/import/record.h"
#include "dataio/import/vqa_csv.h"
#include "dataio/pack/encode.h"
#include "dataio/pack/format.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

void add_file(const std::string& path, Hash64& hash) {
  struct stat facts {};
  const bool is_there = ::stat(path.c_str(), &facts) == 0;
  hash.add(std::string_view(path));
  hash.add(int64_t{is_there ? facts.st_size : -1});
  hash.add(int64_t{is_there ? facts.st_mtim.tv_sec : 0});
  hash.add(int64_t{is_there ? facts.st_mtim.tv_nsec : 0});
}

void add_pictures(const Record& record, const std::string& image_root, Hash64& hash) {
  for (const Message& message : record.messages) {
    for (const ContentPart& part : message.content) {
      if (part.kind == ContentPart::Kind::kText) continue;
      const std::string path = picture_path(image_root, part.text);
      add_file(path, hash);
      if (part.kind != ContentPart::Kind::kVideo) continue;
      try {
        for (const std::string& frame : video_frames(path)) add_file(frame, hash);
      } catch (const WrongRecord& wrong) {
        hash.add(std::string_view(wrong.reason));
      }
    }
  }
}

/// A dataset's name as part of a file name.
std::string file_stem(const std::string& name) {
  std::string stem;
  for (char c : name) {
    const bool is_plain =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '-';
    stem += is_plain ? c : '_';
  }
  return stem;
}

}  // namespace

std::string vision_pixels_text(const VisionPrep& prep) {
  return concat("patch ",
                prep.patch,
                ", temporal_patch ",
                prep.temporal_patch,
                ", merge ",
                prep.merge,
                ", mean ",
                prep.mean,
                ", std ",
                prep.std,
                ", rescale ",
                prep.rescale);
}

std::string vision_sizes_text(const VisionPrep& prep) {
  return concat("image pixels ",
                prep.min_pixels,
                " to ",
                prep.max_pixels,
                ", video pixels ",
                prep.video_min_pixels,
                " to ",
                prep.video_max_pixels,
                ", fps ",
                prep.fps,
                ", frames ",
                prep.min_frames,
                " to ",
                prep.max_frames,
                ", sampled ",
                prep.sample_frames,
                ", capped ",
                prep.cap_pixels_per_frame,
                " at ",
                prep.max_video_tokens);
}

PackPlan plan_pack(const std::string& name,
                   const DatasetConfig& dataset,
                   const DataConfig& data,
                   const SampleEncoder& encoder) {
  PackPlan plan{.name = name};
  const fs::path root =
      dataset.image_root.empty() ? fs::path(dataset.path).parent_path() : fs::path(dataset.image_root);
  plan.image_root = fs::absolute(root).lexically_normal().string();
  const DatasetKind kind = dataset_kind(name, dataset);
  Hash64 pictures;
  {
    const auto source = open_records(name, dataset);
    for (Record record; source->next(record); ++plan.num_records) add_pictures(record, plan.image_root, pictures);
    plan.source_xxh3 = source->bytes_hash();
  }
  plan.keyed = {
      {"kind", kind == DatasetKind::kVqaCsv ? "vqa_csv" : kChatJsonlReading},
      {"source_xxh3", hex16(plan.source_xxh3)},
      {"image_root", plan.image_root},
      {"pictures_xxh3", hex16(pictures.value())},
      {"tokenizer", encoder.tokenizer->content_hash()},
      {"chat_template", std::string(encoder.chat->name())},
      {"placeholders", concat("image ", encoder.image_token, ", video ", encoder.video_token)},
      {"vision_pixels", vision_pixels_text(encoder.vision)},
      {"vision_sizes", vision_sizes_text(encoder.vision)},
      {"max_image_pixels", concat(data.max_image_pixels)},
      {"prompt", kind == DatasetKind::kVqaCsv ? vqa_prompt(name, dataset) : ""},
      {"encoding", dataset.encoding},
      {"store_images", data.store_images},
  };
  Hash64 key;
  key.add(format::kVersion);
  for (const auto& [what, value] : plan.keyed) {
    key.add(std::string_view(what));
    key.add(std::string_view(value));
  }
  plan.key = hex16(key.value());
  plan.file = (fs::path(data.cache) / (file_stem(name) + "-" + plan.key + ".h5")).string();
  return plan;
}

}  // namespace hanok
