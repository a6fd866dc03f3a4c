// Conversations in transformers' chat format, one JSON object a line:
//   {"id": ..., "messages": [{"role": "user", "content": "..." or a list of parts}, ...]}
// A part is {"type": "text", "text": ...}, {"type": "image", "image" | "path" | "url": FILE} or
// {"type": "video", "video" | "path" | "url": FOLDER OF PICTURES, "fps": number}.
// An image may ask for a size of its own, as in qwen-vl-utils: "min_pixels", "max_pixels" after resizing, in the place of
// data.min_pixels and data.max_pixels, or "resized_height" and "resized_width", from which it is resized.
// Or, as TRL and LLaMA-Factory write it, with the pictures beside the messages:
//   {"messages": [{"role": "user", "content": "<image>\nWhat?"}, ...], "images": [FILE, ...] or FILE}
// The n-th name stands for the n-th "<image>" of string contents, or part {"type": "image"} without a name; another
// number of them makes the record wrong. Without "images", "<image>" is text.
// Keys that would change what is learned and are not followed (tools, tool_calls, videos, weight, train, ...: the list
// is in the .cpp) make a record wrong unless they are empty, and so does a key that stands twice; others are notes.
#pragma once

#include <string>

#include "dataio/import/record.h"
#include "dataio/import/source_file.h"

namespace hanok {

/// Part of the pack's key. Raise the number when the same line would be read differently.
inline constexpr const char* kChatJsonlReading = "chat_jsonl 3";

class ChatJsonlSource : public RecordSource {
 public:
  ChatJsonlSource(std::string name, const DatasetConfig& dataset);
  /// Empty lines count but are not returned. errors: kData for a line beyond 64 MB
  bool next(Record& record) override;
  uint64_t bytes_hash() const override { return file_.bytes_hash(); }

 private:
  bool read_line(std::string& line);
  std::string name_;
  SourceFile file_;
  TextDecoder decoder_;
  int64_t num_lines_ = 0;
};

}  // namespace hanok
