// A file that grows by whole pieces.
#pragma once

#include <string>
#include <string_view>

namespace hanok {

class AppendFile {
 public:
  /// errors: kIo if it cannot be opened
  explicit AppendFile(std::string path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  /// The piece is with the operating system when this returns. What a full disk refuses is kept, with one WARNING, and
  /// written before a later piece; the file never holds part of a piece. Never throws.
  void append(std::string_view piece);

 private:
  bool write_pending();

  std::string path_, pending_;
  int fd_ = -1;
  int64_t size_ = 0;  // bytes of whole pieces
  bool warned_ = false;
};

}  // namespace hanok
