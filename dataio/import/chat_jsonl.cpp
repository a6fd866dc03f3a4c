#include "dataio/import/chat_jsonl.h"

#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "dataio/store/json_stream.h"
#include "dataio/store/strict_json.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

using nlohmann::json;
constexpr size_t kMaxLineBytes = 64 << 20;
constexpr std::string_view kImageMark = "<image>";

/// Keys of other trainers' records and messages that change what is learned, and that nothing here follows. Without a
/// value (null, "", [], {}) they are as good as absent; any other key is a note.
constexpr std::string_view kNotFollowed[] = {"image",
                                             "images",
                                             "video",
                                             "videos",
                                             "audio",
                                             "audios",
                                             "tools",
                                             "functions",
                                             "tool_calls",
                                             "function_call",
                                             "reasoning_content",
                                             "system",
                                             "weight",
                                             "train",
                                             "training",
                                             "loss",
                                             "mask",
                                             "chosen",
                                             "rejected"};

/// The same of videos, in the words of qwen-vl-utils.
constexpr std::string_view kNotFollowedOfVideos[] = {"min_pixels",
                                                     "max_pixels",
                                                     "total_pixels",
                                                     "resized_height",
                                                     "resized_width",
                                                     "nframes",
                                                     "min_frames",
                                                     "max_frames",
                                                     "video_start",
                                                     "video_end",
                                                     "sample_fps",
                                                     "raw_fps"};

void refuse_not_followed(const json& object,
                         const std::string& where,
                         std::string_view followed = "",
                         std::span<const std::string_view> keys = kNotFollowed) {
  for (const std::string_view key : keys) {
    const auto it = object.find(key);
    if (key == followed || it == object.end() || it->is_null()) continue;
    if (it->is_string() ? it->get_ref<const std::string&>().empty() : it->is_structured() && it->empty()) continue;
    throw WrongRecord(
        "unknown_key",
        concat(where, ": unknown key ", key, ", expected none that changes what is learned; take it out"));
  }
}

/// Names of the record's pictures that no placeholder has taken yet.
struct RecordPictures {
  bool are_given = false;
  std::vector<std::string> paths;
  size_t num_placeholders = 0;
  /// Of the next placeholder. With too few of them the record is wrong as a whole: see read_conversation().
  std::string take() {
    const size_t i = num_placeholders++;
    return i < paths.size() ? paths[i] : "";
  }
};

const json& member(const json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end()) throw WrongRecord("chat_invalid", where + " lacks \"" + key + "\"");
  return *it;
}

std::string text_of(const json& value, const std::string& where) {
  if (!value.is_string())
    throw WrongRecord("chat_invalid", concat(where, ": got ", value.type_name(), ", expected a string"));
  return value.get<std::string>();
}

/// "file:///a/b.png" is /a/b.png, as qwen-vl-utils reads it.
std::string checked_path(const json& value, const std::string& where) {
  constexpr std::string_view kFile = "file://";
  std::string path = text_of(value, where);
  if (path.starts_with(kFile)) path.erase(0, kFile.size());
  if (path.empty()) throw WrongRecord("path_empty", where + ": got nothing, expected a path");
  if (path.find('\0') != std::string::npos)
    throw WrongRecord("not_a_file", concat(where, ": got ", shown(path), ", expected a path without a zero byte"));
  const bool is_inline = path.starts_with("data:");
  if (is_inline || path.find("://") != std::string::npos) {
    const char* advice = is_inline ? "write the picture to a file" : "download the file first";
    throw WrongRecord("not_a_file",
                      concat(where, ": got ", unicode::beginning(path, 60), ", expected a path; ", advice));
  }
  return path;
}

/// The file or folder of a picture: the first of `keys` that is there, as transformers looks for them.
std::string path_of(const json& part, std::initializer_list<const char*> keys, const std::string& where) {
  for (const char* key : keys) {
    auto it = part.find(key);
    if (it == part.end()) continue;
    // {"image_url": {"url": ...}} is the same thing in OpenAI's words.
    return checked_path(it->is_object() ? member(*it, "url", where) : *it, where + "." + key);
  }
  throw WrongRecord("chat_invalid", where + " lacks the path of its picture");
}

/// `images` of a record: paths, or {"path": ...} as datasets' JSON has them. A single one stands for a list of one.
void read_pictures(const json& images, RecordPictures& pictures) {
  pictures.are_given = true;
  const size_t count = images.is_array() ? images.size() : 1;
  for (size_t i = 0; i < count; ++i) {
    const std::string where = images.is_array() ? concat("images[", i, "]") : "images";
    const json& image = images.is_array() ? images[i] : images;
    pictures.paths.push_back(image.is_object() ? path_of(image, {"path", "url"}, where) : checked_path(image, where));
  }
}

/// Text whose placeholders stand for the pictures of the record, in order.
void append_text(const std::string& text, RecordPictures& pictures, std::vector<ContentPart>& out) {
  using Kind = ContentPart::Kind;
  size_t begin = 0;
  if (pictures.are_given) {
    for (size_t mark; (mark = text.find(kImageMark, begin)) != std::string::npos; begin = mark + kImageMark.size()) {
      if (mark > begin) out.push_back({.kind = Kind::kText, .text = text.substr(begin, mark - begin)});
      out.push_back({.kind = Kind::kImage, .text = pictures.take()});
    }
  }
  if (begin < text.size() || begin == 0) out.push_back({.kind = Kind::kText, .text = text.substr(begin)});
}

/// Pixels of part[key]; 0 where it is not given.
int64_t asked_pixels(const json& part, const char* key, const std::string& where) {
  constexpr int64_t kMost = 1 << 30;
  const auto it = part.find(key);
  if (it == part.end() || it->is_null()) return 0;
  const auto refuse = [&] {
    throw WrongRecord("chat_invalid", concat(where, ".", key, ": got ", it->dump(), ", expected pixels, 1 to ", kMost));
  };
  if (!it->is_number_integer() || (it->is_number_unsigned() && it->get<uint64_t>() > uint64_t{kMost})) refuse();
  if (it->get<int64_t>() < 1) refuse();
  return it->get<int64_t>();
}

ContentPart with_asked_size(ContentPart picture, const json& part, const std::string& where) {
  picture.min_pixels = asked_pixels(part, "min_pixels", where);
  picture.max_pixels = asked_pixels(part, "max_pixels", where);
  picture.resized_height = asked_pixels(part, "resized_height", where);
  picture.resized_width = asked_pixels(part, "resized_width", where);
  if ((picture.resized_height > 0) != (picture.resized_width > 0))
    throw WrongRecord("chat_invalid", where + ": got one of resized_height and resized_width, expected both or none");
  if (picture.max_pixels > 0 && picture.min_pixels > picture.max_pixels)
    throw WrongRecord("chat_invalid",
                      concat(where,
                             ": got min_pixels ",
                             picture.min_pixels,
                             " and max_pixels ",
                             picture.max_pixels,
                             ", expected no more at least than at most"));
  return picture;
}

ContentPart read_part(const json& part, const std::string& where, RecordPictures& pictures, Record& record) {
  using Kind = ContentPart::Kind;
  if (!part.is_object())
    throw WrongRecord("chat_invalid", concat(where, ": got ", part.type_name(), ", expected an object"));
  const std::string type = text_of(member(part, "type", where), where + ".type");
  if (type == "text") return {.kind = Kind::kText, .text = text_of(member(part, "text", where), where + ".text")};
  if (type == "image" || type == "image_url") {
    const auto lacks = [&](const char* key) { return part.value(key, json()).is_null(); };
    const bool is_placeholder = type == "image" && lacks("image") && lacks("url") && lacks("path");
    const std::string path = is_placeholder && pictures.are_given
                                 ? pictures.take()
                                 : path_of(part, {"image", "url", "path", "image_url"}, where);
    return with_asked_size({.kind = Kind::kImage, .text = path}, part, where);
  }
  if (type == "video") {
    refuse_not_followed(part, where, "", kNotFollowedOfVideos);
    double fps = 0;
    if (const auto it = part.find("fps"); it != part.end()) {
      fps = it->is_number() ? it->get<double>() : 0;
      if (!(fps > 0 && fps < 1e6)) {
        throw WrongRecord("chat_invalid",
                          concat(where, ".fps: got ", it->dump(), ", expected frames a second, above 0"));
      }
    }
    record.video_fps.push_back(fps);
    return {.kind = Kind::kVideo, .text = path_of(part, {"video", "url", "path"}, where)};
  }
  throw WrongRecord("chat_invalid", concat(where, ".type: got \"", type, "\", expected text, image or video"));
}

Message read_message(const json& message, const std::string& where, RecordPictures& pictures, Record& record) {
  if (!message.is_object()) {
    throw WrongRecord("chat_invalid", concat(where, ": got ", message.type_name(), ", expected an object"));
  }
  refuse_not_followed(message, where);
  Message out{.role = text_of(member(message, "role", where), where + ".role")};
  const json& content = member(message, "content", where);
  if (content.is_string()) {
    append_text(content.get_ref<const std::string&>(), pictures, out.content);
    return out;
  }
  if (!content.is_array()) {
    throw WrongRecord("chat_invalid",
                      concat(where, ".content: got ", content.type_name(), ", expected a string or a list of parts"));
  }
  for (size_t i = 0; i < content.size(); ++i) {
    out.content.push_back(read_part(content[i], concat(where, ".content[", i, "]"), pictures, record));
  }
  return out;
}

void read_conversation(const json& object, Record& record) {
  if (!object.is_object())
    throw WrongRecord("chat_invalid", concat("got ", object.type_name(), ", expected an object"));
  if (const auto it = object.find("id"); it != object.end() && !it->is_null()) {
    record.id = it->is_string() ? it->get<std::string>() : it->dump();
  }
  const json& messages = member(object, "messages", "the record");
  if (!messages.is_array() || messages.empty()) {
    const std::string got = messages.is_array() ? "an empty list" : messages.type_name();
    throw WrongRecord("chat_invalid", concat("messages: got ", got, ", expected a list with turns"));
  }
  refuse_not_followed(object, "the record", "images");
  RecordPictures pictures;
  if (const auto it = object.find("images"); it != object.end() && !it->is_null()) read_pictures(*it, pictures);
  for (size_t i = 0; i < messages.size(); ++i) {
    record.messages.push_back(read_message(messages[i], concat("messages[", i, "]"), pictures, record));
  }
  if (pictures.num_placeholders != pictures.paths.size()) {
    throw WrongRecord("image_count",
                      concat("images: got ",
                             pictures.paths.size(),
                             ", expected ",
                             pictures.num_placeholders,
                             ", one for each ",
                             kImageMark,
                             " in the messages"));
  }
}

}  // namespace

ChatJsonlSource::ChatJsonlSource(std::string name, const DatasetConfig& dataset)
    : name_(std::move(name)), file_(dataset.path), decoder_(dataset.encoding) {}

bool ChatJsonlSource::read_line(std::string& line) {
  line.clear();
  if (file_.peek() == SourceFile::kEnd) return false;
  ++num_lines_;
  for (int byte; (byte = file_.get()) != SourceFile::kEnd && byte != '\n';) {
    HANOK_REQUIRE(line.size() < kMaxLineBytes, kData)
        << "JSONL line: got more than " << (kMaxLineBytes >> 20) << " MB, expected one record a line; " << file_.path()
        << ", line " << num_lines_ << "; write each record on a line of its own";
    line += static_cast<char>(byte);
  }
  return true;
}

bool ChatJsonlSource::next(Record& record) {
  std::string bytes;
  do {
    if (!read_line(bytes)) return false;
  } while (bytes.find_first_not_of(" \t\r") == std::string::npos);
  record = Record{.number = num_lines_, .id = concat(num_lines_)};
  const std::string where = concat("line ", num_lines_, ": ");
  const std::optional<std::string> line = decoder_.decode(bytes);
  if (!line) {
    record.reject("encoding", where + "got bytes that are " + decoder_.advice(name_, bytes));
    return true;
  }
  json object;
  try {
    object = read_json(*line, concat(file_.path(), ", line ", num_lines_), {}, RepeatedKeys::kRefused);
  } catch (const Error& error) {
    record.reject("json_invalid", where + error.what());
    return true;
  }
  try {
    read_conversation(object, record);
  } catch (const WrongRecord& wrong) {
    record.reject(wrong.reason, where + wrong.what());
  }
  return true;
}

}  // namespace hanok
