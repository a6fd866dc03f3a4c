// One process at a time, for as long as the object lives; a process that dies lets go.
#pragma once

#include <string>

namespace hanok {

class FileLock {
 public:
  /// Waits, after saying once in the log that another process does `what`. errors: kIo
  FileLock(const std::string& path, const std::string& what);
  /// Takes it if nobody has it and the file system keeps locks; else lives without it.
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int fd_ = -1;
};

/// Whether nobody holds the lock of this file right now, as far as its file system tells.
bool is_unlocked(const std::string& path);

}  // namespace hanok
