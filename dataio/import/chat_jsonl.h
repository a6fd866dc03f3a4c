// Conversations in transformers' chat format, one JSON object a line:
//   {"id": ..., "messages": [{"role": "user", "content": "..." or a list of parts}, ...]}
// A part is {"type": "text", "text": ...}, {"type": "image", "image" | "path" | "url": FILE} or
// {"type": "video", "video" | "path" | "url": FOLDER OF PICTURES, "fps": number}.
#pragma once

#include <string>

#include "dataio/import/record.h"
#include "dataio/import/source_file.h"

namespace hanok {

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
