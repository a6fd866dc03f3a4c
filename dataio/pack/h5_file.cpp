#include "dataio/pack/h5_file.h"

#include <hdf5.h>

#include <filesystem>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "dataio/file_io.h"

namespace hanok {
namespace {

/// Held around every entry into HDF5. Its own error printing is off: what it says becomes part of our messages. (The
/// switch is per thread, hence set each time.)
class Entered {
 public:
  Entered() : lock_(mutex()) {
    // HDF5 would try at exit to flush what a full disk refused, and crash. Every file is closed by its owner.
    static const herr_t no_flush_at_exit = H5dont_atexit();
    (void)no_flush_at_exit;
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }

 private:
  static std::mutex& mutex() {
    static std::mutex mutex;
    return mutex;
  }
  std::lock_guard<std::mutex> lock_;
};

/// An HDF5 object that is not a file, closed by its own function.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

template <class T>
hid_t type_of();
template <>
hid_t type_of<uint8_t>() {
  return H5T_STD_U8LE;
}
template <>
hid_t type_of<int32_t>() {
  return H5T_STD_I32LE;
}
template <>
hid_t type_of<int64_t>() {
  return H5T_STD_I64LE;
}
template <>
hid_t type_of<uint64_t>() {
  return H5T_STD_U64LE;
}

herr_t keep_last_description(unsigned, const H5E_error2_t* error, void* out) {
  if (error->desc) *static_cast<std::string*>(out) = error->desc;
  return 0;
}

/// What the innermost frame of HDF5's error stack says; of a refusal of the system, that alone.
std::string hdf5_message() {
  std::string text = "no reason";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_last_description, &text);
  H5Eclear2(H5E_DEFAULT);
  const std::string mark = "error message = '";
  if (const size_t at = text.find(mark); at != std::string::npos) {
    text = text.substr(at + mark.size(), text.find('\'', at + mark.size()) - at - mark.size());
  }
  return text;
}

/// Our packs have a lock of their own, and HDF5's fails on file systems without flock.
hid_t access_without_locks() {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_file_locking(access, false, true);
  return access;
}

}  // namespace

void H5File::fail(bool is_io, const std::string& what) const {
  const std::string cause = hdf5_message();
  if (is_io) {
    HANOK_FAIL(kIo) << "packed file: got \"" << cause << "\", expected " << what << "; " << path_
                    << "; check free space and rights of the folder";
  }
  HANOK_FAIL(kData) << "packed file: got \"" << cause << "\", expected " << what << "; " << path_
                    << "; delete it and pack the data again";
}

H5File H5File::create(const std::string& path) {
  H5File file(path);
  const Entered entered;
  const Handle access(access_without_locks(), H5Pclose);
  file.file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  if (file.file_ < 0) file.fail(true, "a new file");
  file.is_unfinished_ = true;
  return file;
}

H5File H5File::open(const std::string& path) {
  H5File file(path);
  HANOK_REQUIRE(std::filesystem::is_regular_file(path), kIo)
      << "packed file: got nothing to read, expected an HDF5 file; " << path << "; correct data.sets.*.path";
  const Entered entered;
  const Handle access(access_without_locks(), H5Pclose);
  file.file_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  if (file.file_ < 0) file.fail(false, "an HDF5 file that trainer pack wrote");
  return file;
}

H5File::H5File(H5File&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      is_unfinished_(std::exchange(other.is_unfinished_, false)),
      tables_(std::move(other.tables_)) {}

H5File::~H5File() {
  if (file_ >= 0) {
    const Entered entered;
    release();
    H5Fclose(file_);
  }
  std::error_code ignored;
  if (is_unfinished_) std::filesystem::remove(path_, ignored);
}

void H5File::release() {
  for (auto& [name, table] : tables_) H5Dclose(table.id);
  tables_.clear();
}

void H5File::close() {
  {
    const Entered entered;
    release();
    const hid_t file = std::exchange(file_, -1);
    if (H5Fclose(file) < 0) fail(true, "to close the file");
  }
  sync_path(path_);
  is_unfinished_ = false;
}

template <class T>
void H5File::create_table(const std::string& name, int64_t rows, int64_t columns) {
  const Entered entered;
  const hsize_t dims[2] = {static_cast<hsize_t>(rows), static_cast<hsize_t>(columns)};
  const Handle space(H5Screate_simple(columns == 1 ? 1 : 2, dims, nullptr), H5Sclose);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);  // every row is written: no need to write the table twice
  H5Pset_obj_track_times(creation, false);          // equal data makes equal files
  const hid_t id = H5Dcreate2(file_, name.c_str(), type_of<T>(), space, links, creation, H5P_DEFAULT);
  if (id < 0) fail(true, "a new table " + name);
  tables_[name] = {id, rows, columns};
}

const H5File::Table& H5File::table(const std::string& name) const {
  const auto known = tables_.find(name);
  if (known != tables_.end()) return known->second;
  const hid_t id = H5Dopen2(file_, name.c_str(), H5P_DEFAULT);
  if (id < 0) fail(false, "a table " + name);
  Table& table = tables_[name];
  table.id = id;
  const Handle space(H5Dget_space(id), H5Sclose);
  hsize_t dims[2] = {0, 1};
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 1 || rank > 2 || H5Sget_simple_extent_dims(space, dims, nullptr) < 0) fail(false, "rows of " + name);
  table.rows = static_cast<int64_t>(dims[0]);
  table.columns = static_cast<int64_t>(dims[1]);
  return table;
}

void H5File::transfer(
    bool is_write, const std::string& name, int64_t row, int64_t type, void* data, size_t count) const {
  const Entered entered;
  const Table& table = this->table(name);
  const auto columns = static_cast<size_t>(table.columns);
  const auto rows = static_cast<int64_t>(columns ? count / columns : 0);
  HANOK_REQUIRE(columns > 0 && count % columns == 0 && row >= 0 && row + rows <= table.rows, kData)
      << "packed file: got " << count << " values from row " << row << " on, expected whole rows within " << table.rows
      << " x " << table.columns << "; " << path_ << ", table " << name << "; delete it and pack the data again";
  if (rows == 0) return;
  const Handle stored(H5Dget_type(table.id), H5Tclose);
  HANOK_REQUIRE(H5Tequal(stored, type) > 0, kData)
      << "packed file: got another type of numbers, expected that of the format; " << path_ << ", table " << name
      << "; delete it and pack the data again";
  const hsize_t start[2] = {static_cast<hsize_t>(row), 0};
  const hsize_t size[2] = {static_cast<hsize_t>(rows), static_cast<hsize_t>(columns)};
  const Handle file_space(H5Dget_space(table.id), H5Sclose);
  const Handle memory_space(H5Screate_simple(H5Sget_simple_extent_ndims(file_space), size, nullptr), H5Sclose);
  const bool is_selected = H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start, nullptr, size, nullptr) >= 0;
  if (!is_selected) fail(false, "rows of " + name);
  // Files are little-endian and so are the machines this runs on: the stored type is the one in memory.
  const herr_t status = is_write ? H5Dwrite(table.id, type, memory_space, file_space, H5P_DEFAULT, data)
                                 : H5Dread(table.id, type, memory_space, file_space, H5P_DEFAULT, data);
  if (status < 0) fail(is_write, is_write ? "to write rows of " + name : "to read rows of " + name);
}

template <class T>
void H5File::write(const std::string& table, int64_t row, std::span<const T> values) {
  transfer(true, table, row, type_of<T>(), const_cast<T*>(values.data()), values.size());
}
template <class T>
void H5File::read(const std::string& table, int64_t row, std::span<T> values) const {
  transfer(false, table, row, type_of<T>(), values.data(), values.size());
}

int64_t H5File::num_rows(const std::string& name) const {
  const Entered entered;
  return table(name).rows;
}
int64_t H5File::num_columns(const std::string& name) const {
  const Entered entered;
  return table(name).columns;
}

void H5File::set_attribute(const std::string& name, const std::string& value) {
  const Entered entered;
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, value.size() + 1);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const Handle attribute(H5Acreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute < 0 || H5Awrite(attribute, type, value.c_str()) < 0) fail(true, "a new attribute " + name);
}

void H5File::set_attribute(const std::string& name, int64_t value) {
  const Entered entered;
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate2(file_, name.c_str(), H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute < 0 || H5Awrite(attribute, H5T_STD_I64LE, &value) < 0) fail(true, "a new attribute " + name);
}

std::string H5File::text_attribute(const std::string& name) const {
  const Entered entered;
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (attribute < 0) fail(false, "an attribute " + name);
  const Handle type(H5Aget_type(attribute), H5Tclose);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0) fail(false, "a text attribute " + name);
  std::vector<char> text(H5Tget_size(type) + 1, '\0');
  if (H5Aread(attribute, type, text.data()) < 0) fail(false, "to read attribute " + name);
  return text.data();
}

int64_t H5File::int_attribute(const std::string& name) const {
  const Entered entered;
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  int64_t value = 0;
  if (attribute < 0 || H5Aread(attribute, H5T_STD_I64LE, &value) < 0) fail(false, "an attribute " + name);
  return value;
}

bool H5File::has_attribute(const std::string& name) const {
  const Entered entered;
  return H5Aexists(file_, name.c_str()) > 0;
}

#define HANOK_H5_TYPE(T)                                                           \
  template void H5File::create_table<T>(const std::string&, int64_t, int64_t);     \
  template void H5File::write<T>(const std::string&, int64_t, std::span<const T>); \
  template void H5File::read<T>(const std::string&, int64_t, std::span<T>) const;
HANOK_H5_TYPE(uint8_t)
HANOK_H5_TYPE(int32_t)
HANOK_H5_TYPE(int64_t)
HANOK_H5_TYPE(uint64_t)
#undef HANOK_H5_TYPE

}  // namespace hanok
