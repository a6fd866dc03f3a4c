#include "dataio/import/chat_jsonl.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/store/json_stream.h"
#include "dataio/text/unicode.h"

namespace hanok {
namespace {

using nlohmann::json;
constexpr size_t kMaxLineBytes = 64 << 20;

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

/// The file or folder of a picture: the first of `keys` that is there, as transformers looks for them.
std::string path_of(const json& part, std::initializer_list<const char*> keys, const std::string& where) {
  for (const char* key : keys) {
    auto it = part.find(key);
    if (it == part.end()) continue;
    // {"image_url": {"url": ...}} is the same thing in OpenAI's words.
    const json& value = it->is_object() ? member(*it, "url", where) : *it;
    const std::string path = text_of(value, where + "." + key);
    if (path.empty()) throw WrongRecord("path_empty", where + "." + key + ": got nothing, expected a path");
    const size_t scheme = path.find("://");
    if (scheme != std::string::npos || path.rfind("data:", 0) == 0) {
      throw WrongRecord(
          "not_a_file",
          concat(
              where, ".", key, ": got ", unicode::beginning(path, 60), ", expected a path; download the file first"));
    }
    return path;
  }
  throw WrongRecord("chat_invalid", where + " lacks the path of its picture");
}

ContentPart read_part(const json& part, const std::string& where, Record& record) {
  using Kind = ContentPart::Kind;
  if (!part.is_object())
    throw WrongRecord("chat_invalid", concat(where, ": got ", part.type_name(), ", expected an object"));
  const std::string type = text_of(member(part, "type", where), where + ".type");
  if (type == "text") return {.kind = Kind::kText, .text = text_of(member(part, "text", where), where + ".text")};
  if (type == "image" || type == "image_url") {
    return {.kind = Kind::kImage, .text = path_of(part, {"image", "url", "path", "image_url"}, where)};
  }
  if (type == "video") {
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

Message read_message(const json& message, const std::string& where, Record& record) {
  if (!message.is_object()) {
    throw WrongRecord("chat_invalid", concat(where, ": got ", message.type_name(), ", expected an object"));
  }
  Message out{.role = text_of(member(message, "role", where), where + ".role")};
  const json& content = member(message, "content", where);
  if (content.is_string()) {
    out.content.push_back({.kind = ContentPart::Kind::kText, .text = content.get<std::string>()});
    return out;
  }
  if (!content.is_array()) {
    throw WrongRecord("chat_invalid",
                      concat(where, ".content: got ", content.type_name(), ", expected a string or a list of parts"));
  }
  for (size_t i = 0; i < content.size(); ++i) {
    out.content.push_back(read_part(content[i], concat(where, ".content[", i, "]"), record));
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
    throw WrongRecord("chat_invalid", concat("messages: got ", messages.type_name(), ", expected a list with turns"));
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    record.messages.push_back(read_message(messages[i], concat("messages[", i, "]"), record));
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
    record.reject("encoding", where + "got bytes that are " + decoder_.advice(name_));
    return true;
  }
  json object;
  try {
    object = read_json(*line, concat(file_.path(), ", line ", num_lines_));
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
