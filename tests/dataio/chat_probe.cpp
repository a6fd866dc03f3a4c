// Renders what an oracle script wrote, one JSON object a line.
//   chat_probe jinja NAME      prints the Jinja text of a known template
//   chat_probe render IN OUT   IN: {"folder", "override", "messages": [{"role", "content": [{"type", "text"}]}],
//                                   "generation", "continue"}
//                              OUT: {"name", "text", "labels", "literal", "vision"} or {"error"}
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "dataio/chat.h"

namespace {

using nlohmann::json;
using Kind = hanok::ContentPart::Kind;

std::vector<hanok::Message> messages_of(const json& list) {
  std::vector<hanok::Message> out;
  for (const json& m : list) {
    hanok::Message message{.role = m.at("role")};
    for (const json& part : m.at("content")) {
      const std::string type = part.at("type");
      const Kind kind = type == "text" ? Kind::kText : type == "image" ? Kind::kImage : Kind::kVideo;
      message.content.push_back({kind, part.at("text")});
    }
    out.push_back(std::move(message));
  }
  return out;
}

json spans_of(const std::vector<hanok::Span>& spans) {
  json out = json::array();
  for (const auto& span : spans) out.push_back({span.begin, span.end});
  return out;
}

json rendered(const json& request) try {
  const auto chat = hanok::chat_template_from_folder(request.at("folder"), request.at("override"));
  const auto result =
      chat->render(messages_of(request.at("messages")), request.at("generation"), request.at("continue"));
  json vision = json::array();
  for (const auto& slot : result.vision) {
    vision.push_back({slot.path, slot.kind == Kind::kVideo, slot.placeholder.begin, slot.placeholder.end});
  }
  return {{"name", chat->name()},
          {"text", result.text},
          {"labels", spans_of(result.labels)},
          {"literal", spans_of(result.literal)},
          {"vision", vision}};
} catch (const hanok::Error& error) {
  return {{"error", error.what()}};
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string mode = argc > 2 ? argv[1] : "";
  if (mode == "jinja") {
    std::cout << hanok::jinja_of(argv[2]);
    return 0;
  }
  if (mode != "render" || argc < 4) return 2;
  std::ifstream in(argv[2]);
  std::ofstream out(argv[3]);
  for (std::string line; std::getline(in, line);) out << rendered(json::parse(line)).dump() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
