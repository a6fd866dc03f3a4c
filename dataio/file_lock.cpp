#include "dataio/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace hanok {

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

FileLock::FileLock(const std::string& path) : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  if (fd_ >= 0) ::flock(fd_, LOCK_EX | LOCK_NB);
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
