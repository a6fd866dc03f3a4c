#include "trainer/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"

namespace hanok {

AppendFile::AppendFile(std::string path) : path_(std::move(path)) {
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  size_ = fd_ < 0 ? -1 : lseek(fd_, 0, SEEK_END);
  HANOK_REQUIRE(size_ >= 0, kIo) << path_ << ": got '" << std::strerror(errno)
                                 << "', expected a file that can be written; check rights and free space";
}

AppendFile::~AppendFile() {
  if (!write_pending()) HANOK_LOG(WARNING) << path_ << ": " << pending_.size() << " bytes were never written";
  close(fd_);
}

void AppendFile::append(std::string_view piece) {
  pending_ += piece;
  if (write_pending() || warned_) return;
  warned_ = true;
  HANOK_LOG(WARNING) << path_ << ": got '" << std::strerror(errno)
                     << "', expected room for a line; it is kept in memory and written when there is room again";
}

bool AppendFile::write_pending() {
  size_t done = 0;
  while (done < pending_.size()) {
    const ssize_t n = write(fd_, pending_.data() + done, pending_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (done == pending_.size()) {
    size_ += static_cast<int64_t>(done);
    pending_.clear();
    return true;
  }
  const int cause = errno;
  // Should cutting fail, too, the part that was written counts as written: nothing is ever there twice.
  if (done > 0 && ftruncate(fd_, size_) != 0) {
    size_ += static_cast<int64_t>(done);
    pending_.erase(0, done);
  }
  errno = cause;
  return false;
}

}  // namespace hanok
