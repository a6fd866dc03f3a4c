// Files that are read whole, and files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <system_error>

namespace hanok {

std::string read_file(const std::string& path);  // errors: kIo, also for what is no file (a pipe, a device)
/// A JSON file of foreign origin. errors: kIo; kData naming file and byte if it is not one JSON value, nests deeper
/// than 32 or has more than 65,536 values
nlohmann::json foreign_json(const std::string& path);
/// fsync of a file or a directory. errors: kIo
void sync_path(const std::string& path);
/// Writes a small file by write-temp + fsync + rename. errors: kIo
void write_file_atomically(const std::string& path, const std::string& bytes);

/// errors: kIo, "<action>: got '<cause>'", naming the path
void require_success(const std::error_code& error, std::string_view action, const std::string& path);
/// Gives the folder `from` the name `to`. An earlier `to` is swapped out in one step where the file system can, and
/// removed; where it cannot (NFS), it waits as FROM.replaced.tmp, and a kill between the two renames leaves it there.
/// errors: kIo
void rename_over(const std::string& from, const std::string& to);

/// A file under way: bytes go to PATH.tmp, commit() makes them durable and gives them their name.
/// Room for `bytes_wanted` is reserved first, so that a full disk is found before the work is done.
/// errors: kIo naming path, cause, bytes wanted and bytes free. Whatever ends it before commit(), PATH.tmp is removed
/// and an earlier PATH is left as it was.
class OutputFile {
 public:
  OutputFile(const std::string& path, int64_t bytes_wanted);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(const void* data, size_t size);
  void commit();

 private:
  [[noreturn]] void fail(const char* action);
  void discard();

  std::string path_, temporary_;
  int64_t bytes_wanted_ = 0, bytes_written_ = 0;
  int fd_ = -1;
};

}  // namespace hanok
