// HDF5 files of flat tables: the only includer of hdf5.h. Tables have a fixed number of rows and are stored in one
// piece (contiguous layout): nothing is compressed, so a stretch of rows is one read at a computed place.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace hanok {

/// Every call takes a process-wide lock: an HDF5 library may not be entered twice, not even for different files.
/// errors: kIo when the file system refuses; kData when the bytes are not what was asked for. Both name the file and
///         what HDF5 says.
class H5File {
 public:
  /// Replaces a file of that name. Nothing is durable before close(); without it the file is removed again.
  static H5File create(const std::string& path);
  static H5File open(const std::string& path);
  ~H5File();
  H5File(H5File&& other) noexcept;
  H5File& operator=(H5File&&) = delete;

  /// T: uint8_t, int32_t, int64_t, uint64_t, stored little-endian. [rows, columns], or [rows] when columns = 1. Groups
  /// in `name` ("samples/ends") are made.
  template <class T>
  void create_table(const std::string& name, int64_t rows, int64_t columns);
  /// Whole rows from `row` on. read() checks the type of the table.
  template <class T>
  void write(const std::string& table, int64_t row, std::span<const T> values);
  template <class T>
  void read(const std::string& table, int64_t row, std::span<T> values) const;
  /// Of a table that lies in the file as a whole: its rows are no more than the file has bytes. errors: kData
  int64_t num_rows(const std::string& table) const;
  int64_t num_columns(const std::string& table) const;

  void set_attribute(const std::string& name, const std::string& value);
  void set_attribute(const std::string& name, int64_t value);
  std::string text_attribute(const std::string& name) const;
  int64_t int_attribute(const std::string& name) const;
  bool has_attribute(const std::string& name) const;

  /// Flushes, and makes the file durable. errors: kIo
  void close();
  const std::string& path() const { return path_; }

 private:
  struct Table {
    int64_t id = -1;
    int64_t rows = 0, columns = 1;
  };
  explicit H5File(std::string path) : path_(std::move(path)) {}
  const Table& table(const std::string& name) const;
  void transfer(bool is_write, const std::string& name, int64_t row, int64_t type, void* data, size_t count) const;
  void check_storage(const std::string& name, int64_t id, uint64_t rows, uint64_t columns, uint64_t width) const;
  void check_scalar(const std::string& name, int64_t attribute, int64_t type) const;
  void require(bool holds, const std::string& got, const std::string& expected, const std::string& where) const;
  [[noreturn]] void fail(bool is_io, const std::string& what) const;
  void release();

  std::string path_;
  int64_t file_ = -1;
  uint64_t bytes_ = 0;  // of a file that was opened
  bool is_unfinished_ = false;
  mutable std::map<std::string, Table> tables_;  // opened so far
};

}  // namespace hanok
