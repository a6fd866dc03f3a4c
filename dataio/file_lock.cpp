#include "dataio/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "dataio/file_io.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

/// Whether the path still leads to the file that was opened.
bool is_open_file(const std::string& path, int fd) {
  struct stat opened {
  }, there{};
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &there) == 0 && opened.st_dev == there.st_dev &&
         opened.st_ino == there.st_ino;
}

}  // namespace

FileLock::FileLock(const std::string& path, const std::string& what) {
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  HANOK_REQUIRE(fd_ >= 0, kIo) << "lock file: got \"" << std::strerror(errno) << "\", expected to make it; " << path
                               << "; check rights and space of the folder";
  bool is_told = false;
  while (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int cause = errno;
    if (cause != EWOULDBLOCK && cause != EINTR) {
      ::close(fd_);
      HANOK_FAIL(kIo) << "lock file: got \"" << std::strerror(cause) << "\", expected a lock; " << path
                      << "; choose a folder on a file system with flock";
    }
    if (!is_told) HANOK_LOG(INFO) << "waiting for another process that is " << what << " (" << path << ")";
    is_told = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

std::unique_ptr<FileLock> FileLock::of_removed_file(const std::string& path) {
  constexpr int kTries = 50;  // others look whether it is free, which takes no time
  constexpr std::chrono::milliseconds kPause{10};
  const std::string folder = fs::path(path).parent_path().string();
  for (int i = 0; i < kTries; ++i) {
    std::error_code error;
    fs::create_directories(folder, error);
    // "It exists" may be said of one that its owner removes at this moment.
    if (error != std::errc::file_exists) require_success(error, "create folder", folder);
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
    const int cause = errno;
    if (fd < 0 && cause == ENOENT) continue;  // its owner removed the folder meanwhile
    HANOK_REQUIRE(fd >= 0, kIo) << "lock file: got \"" << std::strerror(cause) << "\", expected to make it; " << path
                                << "; check rights and space of the folder";
    std::unique_ptr<FileLock> lock(new FileLock(fd));
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      std::this_thread::sleep_for(kPause);
    else if (is_open_file(path, fd))
      return lock;
  }
  return nullptr;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

bool is_unlocked(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return errno == ENOENT;
  // Shared: ranks that ask at the same time do not take each other for the owner.
  const bool is_free = ::flock(fd, LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK;
  ::close(fd);
  return is_free;
}

}  // namespace hanok
