// One process at a time, for as long as the object lives; a process that dies lets go.
#pragma once

#include <memory>
#include <string>

namespace hanok {

class FileLock {
 public:
  /// Waits, after saying once in the log that another process does `what`. errors: kIo
  FileLock(const std::string& path, const std::string& what);
  /// Of a file that its owner removes while it has the lock: makes it, and its folder, where they are missing. Nothing
  /// if another process has it; where the file system keeps no locks, nobody else does. errors: kIo
  static std::unique_ptr<FileLock> of_removed_file(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int fd) : fd_(fd) {}

  int fd_ = -1;
};

/// Whether nobody holds the lock of this file right now, as far as its file system tells.
bool is_unlocked(const std::string& path);

}  // namespace hanok
