#include "trainer/side_files.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/chat.h"
#include "dataio/file_io.h"
#include "dataio/tensor_store.h"
#include "dataio/tokenizer.h"
#include "model/hf/name_map.h"
#include "trainer/configured_dtype.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::string_view kTokenizerFiles[] = {"tokenizer.json",
                                                "tokenizer_config.json",
                                                "vocab.json",
                                                "merges.txt",
                                                "added_tokens.json",
                                                "special_tokens_map.json",
                                                "chat_template.jinja",
                                                "chat_template.json"};

constexpr std::string_view kSettingsFiles[] = {
    "config.json", "generation_config.json", "preprocessor_config.json", "video_preprocessor_config.json"};

/// Settings and texts, never weights in any format.
bool is_side_file(const fs::path& path) {
  const std::string name = path.filename().string(), extension = path.extension().string();
  if (name.ends_with(".index.json")) return false;
  const bool is_text = extension == ".json" || extension == ".jinja" || extension == ".txt" || extension == ".model";
  return is_text || name.starts_with("LICENSE") || name.starts_with("NOTICE");
}

void copy_durably(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::copy_file(from, to, fs::copy_options::overwrite_existing, error);
  HANOK_REQUIRE(!error, kIo) << "copy: got '" << error.message() << "', expected success; " << from.string() << " to "
                             << to.string() << "; check rights and space";
  sync_path(to.string());
}

void copy_side_files(const fs::path& from, const fs::path& to) {
  std::error_code error;
  for (fs::directory_iterator it(from, error), end; !error && it != end; it.increment(error))
    if (it->is_regular_file() && is_side_file(it->path())) copy_durably(it->path(), to / it->path().filename());
  HANOK_REQUIRE(!error, kIo) << "list folder: got '" << error.message() << "', expected a readable model folder; "
                             << from.string() << "; check the path and its rights";
}

void write_json(const std::string& file, const Json& json) {
  write_file_atomically(file, json.dump(2) + "\n");
}

/// As the published Qwen3-VL folders say it.
Json vision_json(const VisionPrep& prep, int64_t min_pixels, int64_t max_pixels) {
  return {{"size", {{"shortest_edge", min_pixels}, {"longest_edge", max_pixels}}},
          {"patch_size", prep.patch},
          {"temporal_patch_size", prep.temporal_patch},
          {"merge_size", prep.merge},
          {"image_mean", prep.mean},
          {"image_std", prep.std},
          {"rescale_factor", prep.rescale},
          {"processor_class", "Qwen3VLProcessor"}};
}

/// Whether the folder's own template is one that renders as `jinja` does: then its text stays as it is.
bool renders_as(const std::string& folder, const std::string& jinja) {
  if (!has_chat_template(folder)) return false;
  try {
    return jinja_of(chat_template_from_folder(folder, "")->name()) == jinja;
  } catch (const Error&) {  // an unknown template: the model was trained with the given one all the same
    return false;
  }
}

/// A copied config.json that says what the weights are now.
void set_dtype(const std::string& file, const std::string& dtype) {
  auto config = nlohmann::ordered_json::parse(read_file(file));  // read before, so it is sound
  const auto set_where_it_stands = [&](nlohmann::ordered_json& part) {
    bool stands = false;
    for (const char* key : {"dtype", "torch_dtype"}) {
      if (!part.contains(key)) continue;
      part[key] = dtype;
      stands = true;
    }
    return stands;
  };
  for (const char* part : {"text_config", "vision_config"})
    if (config.contains(part) && config[part].is_object()) set_where_it_stands(config[part]);
  if (!set_where_it_stands(config)) config["dtype"] = dtype;
  write_file_atomically(file, config.dump(2) + "\n");
}

/// What transformers needs beside weights and tokenizer to open a folder that was trained from scratch.
void write_new_side_files(const std::string& folder,
                          const ModelConfig& config,
                          at::ScalarType dtype,
                          const ExportOptions& options) {
  Json hf = write_hf_config(config, configured_name(dtype));
  // The dialect that is written. Without it transformers takes the tokenizer for a faulty one and warns.
  hf["transformers_version"] = "5.17.0";
  write_json(folder + "/config.json", hf);
  Json generation = Json::object();
  if (!options.tokenizer_folder.empty()) {
    const Tokenizer tokenizer = Tokenizer::from_folder(options.tokenizer_folder);
    const auto end_of_turn = tokenizer.id("<|im_end|>"), end_of_text = tokenizer.id("<|endoftext|>");
    std::vector<int32_t> stops;
    for (const auto& token : {end_of_turn, end_of_text})
      if (token) stops.push_back(*token);
    if (!stops.empty()) generation["eos_token_id"] = stops;
    if (end_of_text) generation["pad_token_id"] = *end_of_text;
  }
  write_json(folder + "/generation_config.json", generation);
  if (config.tower.type != "none") {
    const VisionPrep& prep = options.vision;
    Json image = vision_json(prep, prep.min_pixels, prep.max_pixels);
    image["image_processor_type"] = "Qwen2VLImageProcessorFast";
    write_json(folder + "/preprocessor_config.json", image);
    Json video = vision_json(prep, prep.video_min_pixels, prep.video_max_pixels);
    video["video_processor_type"] = "Qwen3VLVideoProcessor";
    video["fps"] = prep.fps;
    video["min_frames"] = prep.min_frames;
    video["max_frames"] = prep.max_frames;
    write_json(folder + "/video_preprocessor_config.json", video);
  }
}

}  // namespace

Json read_json_file(const std::string& file) {
  try {
    return foreign_json(file);
  } catch (const Error& error) {  // what a model folder says about itself is config
    throw Error(error.kind() == ErrorKind::kData ? ErrorKind::kConfig : error.kind(), error.what());
  }
}

bool has_chat_template(const std::string& folder) {
  std::error_code error;
  if (fs::exists(folder + "/chat_template.jinja", error) || fs::exists(folder + "/chat_template.json", error))
    return true;
  const std::string tokenizer = folder + "/tokenizer_config.json";
  return fs::exists(tokenizer, error) && read_json_file(tokenizer).contains("chat_template");
}

bool is_written_side_file(const std::string& name, const ExportOptions& options) {
  const auto is_one_of = [&](const auto& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
  };
  if (is_one_of(kSettingsFiles) || is_one_of(kTokenizerFiles)) return true;
  std::error_code error;
  return !options.source_folder.empty() && is_side_file(name) &&
         fs::is_regular_file(fs::path(options.source_folder) / name, error);
}

void write_side_files(const std::string& folder,
                      const ModelConfig& config,
                      at::ScalarType dtype,
                      const ExportOptions& options) {
  if (options.source_folder.empty()) {
    write_new_side_files(folder, config, dtype, options);
  } else {
    copy_side_files(options.source_folder, folder);
    if (options.dtype) set_dtype(folder + "/config.json", configured_name(*options.dtype));
  }
  std::error_code error;
  if (!options.tokenizer_folder.empty() && !fs::equivalent(options.tokenizer_folder, folder, error) &&
      options.tokenizer_folder != options.source_folder) {
    // The tokenizer that the model was trained with takes the place of another one's files, all of them.
    const auto has = [&](std::string_view name) {
      return fs::exists(fs::path(options.tokenizer_folder) / name, error);
    };
    for (const std::string_view name : kTokenizerFiles) {
      const bool is_template = name.starts_with("chat_template");
      if (!is_template && !has(name)) fs::remove(fs::path(folder) / name, error);
      if (has(name)) copy_durably(fs::path(options.tokenizer_folder) / name, fs::path(folder) / name);
    }
  }
  if (!options.chat_template.empty() && !renders_as(folder, options.chat_template)) {
    fs::remove(folder + "/chat_template.json", error);
    write_file_atomically(folder + "/chat_template.jinja", options.chat_template);
  }
}

}  // namespace hanok
