#include "dataio/file_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/error.h"

namespace hanok {

namespace fs = std::filesystem;

namespace {

std::string message_of(int code) {
  return std::generic_category().message(code);
}

std::string parent_of(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

// Closes on every way out, thrown errors included.
struct Descriptor {
  explicit Descriptor(int number) : number(number) {}
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int number;
};

}  // namespace

std::string read_file(const std::string& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a pipe would wait for its writer
  HANOK_REQUIRE(fd.number >= 0, kIo) << "open: got '" << message_of(errno) << "', expected a readable file; " << path
                                     << "; check the path and its rights";
  std::string bytes;
  struct stat status {};
  const bool is_known = ::fstat(fd.number, &status) == 0;
  HANOK_REQUIRE(!is_known || S_ISREG(status.st_mode) || S_ISDIR(status.st_mode), kIo)
      << "open: got something that is not a file, expected a readable file; " << path << "; put a file in its place";
  if (is_known && status.st_size > 0) bytes.reserve(static_cast<size_t>(status.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(fd.number, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    HANOK_REQUIRE(count >= 0, kIo) << "read: got '" << message_of(errno) << "' after " << bytes.size()
                                   << " bytes, expected a readable file; " << path << "; check the file and the disk";
    if (count == 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(count));
  }
}

void sync_path(const std::string& path) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  HANOK_REQUIRE(fd.number >= 0, kIo) << "open for fsync: got '" << message_of(errno) << "', expected a file or folder; "
                                     << path << "; check the path and its rights";
  // Some network file systems cannot sync a directory and say EINVAL: their renames are synchronous.
  const bool synced = ::fsync(fd.number) == 0 || errno == EINVAL || errno == ENOTSUP;
  HANOK_REQUIRE(synced, kIo) << "fsync: got '" << message_of(errno) << "', expected success; " << path
                             << "; check the disk, its quota and its log";
}

void write_file_atomically(const std::string& path, const std::string& bytes) {
  OutputFile file(path, static_cast<int64_t>(bytes.size()));
  file.write(bytes.data(), bytes.size());
  file.commit();
}

OutputFile::OutputFile(const std::string& path, int64_t bytes_wanted) : path_(path), bytes_wanted_(bytes_wanted) {
  const std::string temporary = path + ".tmp";
  fd_ = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("create");
  temporary_ = temporary;  // from here on it is ours to remove
  if (bytes_wanted <= 0) return;
  int reserved = 0;
  do {
    reserved = ::fallocate(fd_, 0, 0, bytes_wanted);
  } while (reserved != 0 && errno == EINTR);
  // Only these errors are final; the others say that this file system cannot reserve, and writing shows the rest.
  if (reserved != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)) fail("reserve");
}

OutputFile::~OutputFile() {
  discard();
}

void OutputFile::write(const void* data, size_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::write(fd_, next, std::min<size_t>(size, 1 << 30));  // Linux writes at most 2 GiB at once
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("write");
    next += count;
    size -= static_cast<size_t>(count);
    bytes_written_ += count;
  }
}

void OutputFile::commit() {
  if (::fsync(fd_) != 0) fail("fsync");
  const int closed = ::close(fd_);
  fd_ = -1;
  if (closed != 0) fail("close");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename");
  temporary_.clear();
  sync_path(parent_of(path_));
}

void OutputFile::fail(const char* action) {
  const int code = errno;
  struct statvfs disk {};
  const bool known = ::statvfs(parent_of(path_).c_str(), &disk) == 0;
  const uint64_t free_bytes = static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize;
  discard();
  const std::string room = known ? concat(free_bytes, " bytes are free there") : "free bytes unknown";
  HANOK_FAIL(kIo) << action << ": got '" << message_of(code) << "' after " << bytes_written_
                  << " bytes, expected to write " << bytes_wanted_ << " bytes; " << path_ << " (" << room
                  << "); free space, check quota and rights, or choose another folder";
}

void OutputFile::discard() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void require_success(const std::error_code& error, std::string_view action, const std::string& path) {
  HANOK_REQUIRE(!error, kIo) << action << ": got '" << error.message() << "', expected success; " << path
                             << "; check the path, its rights and the disk";
}

void rename_over(const std::string& from, const std::string& to) {
  std::error_code error;
  if (fs::exists(to, error)) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
      fs::remove_all(from, error);
      require_success(error, "remove", from);
      return;
    }
    const std::string replaced = from + ".replaced.tmp";  // beside what is ours, never beside what is the user's
    fs::remove_all(replaced, error);
    fs::rename(to, replaced, error);
    require_success(error, "rename", to);
    fs::rename(from, to, error);
    std::error_code ignored;
    if (error) fs::rename(replaced, to, ignored);
    require_success(error, "rename", from);
    fs::remove_all(replaced, error);
    require_success(error, "remove", replaced);
    return;
  }
  fs::rename(from, to, error);
  require_success(error, "rename", from);
}

}  // namespace hanok
