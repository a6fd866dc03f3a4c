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
  hid_t release() { return std::exchange(id_, -1); }

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

/// Of text attributes, the zero behind them included.
hid_t text_type(size_t size) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, size);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

/// Our packs have a lock of their own, and HDF5's fails on file systems without flock.
hid_t access_without_locks() {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_file_locking(access, false, true);
  return access;
}

}  // namespace

/// What the file says of itself is judged before it is used: HDF5 trusts it.
void H5File::require(bool holds, const std::string& got, const std::string& expected, const std::string& where) const {
  HANOK_REQUIRE(holds, kData) << "packed file: got " << got << ", expected " << expected << "; " << path_ << ", "
                              << where << "; delete it and pack the data again";
}

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
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  file.bytes_ = error ? 0 : static_cast<uint64_t>(bytes);
  const Entered entered;
  const Handle access(access_without_locks(), H5Pclose);
  file.file_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access);
  if (file.file_ < 0) file.fail(false, "an HDF5 file that trainer pack wrote");
  return file;
}

H5File::H5File(H5File&& other) noexcept
    : path_(std::move(other.path_)),
      file_(std::exchange(other.file_, -1)),
      bytes_(other.bytes_),
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
  for (size_t end = 0; end != std::string::npos;) {  // of "samples/ends" first "samples": no link leaves the file
    end = name.find('/', end + 1);
    H5L_info_t link;
    const bool is_known = H5Lget_info(file_, name.substr(0, end).c_str(), &link, H5P_DEFAULT) >= 0;
    if (!is_known) fail(false, "a table " + name);
    require(link.type == H5L_TYPE_HARD, "a link to elsewhere", "rows of this file", "table " + name);
  }
  Handle id(H5Dopen2(file_, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (id < 0) fail(false, "a table " + name);
  const Handle space(H5Dget_space(id), H5Sclose);
  hsize_t dims[2] = {0, 1};
  const int rank = H5Sget_simple_extent_ndims(space);
  if (rank < 1 || rank > 2 || H5Sget_simple_extent_dims(space, dims, nullptr) < 0) fail(false, "rows of " + name);
  const Handle type(H5Dget_type(id), H5Tclose);
  const hsize_t width = H5Tget_size(type);
  if (width == 0) fail(false, "numbers in " + name);
  check_storage(name, id, dims[0], dims[1], width);
  return tables_[name] = {id.release(), static_cast<int64_t>(dims[0]), static_cast<int64_t>(dims[1])};
}

/// Rows that are declared must lie in the file, in one piece: sizes that follow from them are then bounded by it.
void H5File::check_storage(const std::string& name, int64_t id, uint64_t rows, uint64_t columns, uint64_t width) const {
  const std::string where = "table " + name;
  const Handle creation(H5Dget_create_plist(id), H5Pclose);
  require(H5Pget_layout(creation) == H5D_CONTIGUOUS && H5Pget_external_count(creation) == 0,
          "rows that lie elsewhere",
          "them in one piece of this file",
          where);
  if (rows == 0) return;
  const std::string got = concat(rows, " rows of ", columns, " x ", width, " bytes");
  const std::string expected = concat("rows within the ", bytes_, " bytes of the file");
  const bool is_small = columns > 0 && columns <= bytes_ / width && rows <= bytes_ / width / columns;
  require(is_small, got, expected, where);
  const uint64_t table_bytes = rows * columns * width;
  const haddr_t begin = H5Dget_offset(id);
  const bool is_inside = begin != HADDR_UNDEF && begin <= bytes_ - table_bytes;
  require(is_inside && H5Dget_storage_size(id) == table_bytes, got, expected, where);
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
  const Handle type(text_type(value.size() + 1), H5Tclose);
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
  const Handle stored(H5Aget_type(attribute), H5Tclose);
  const bool is_text = H5Tget_class(stored) == H5T_STRING && H5Tis_variable_str(stored) == 0;
  const size_t size = is_text ? H5Tget_size(stored) : 0;
  require(size > 0 && size <= bytes_, "no text", "one within the file", "attribute " + name);
  const Handle type(text_type(size), H5Tclose);
  check_scalar(name, attribute, type);
  std::vector<char> text(size + 1, '\0');
  if (H5Aread(attribute, type, text.data()) < 0) fail(false, "to read attribute " + name);
  return text.data();
}

/// H5Aread writes as many values of the type as the file says, and converts from whatever type the file describes.
void H5File::check_scalar(const std::string& name, int64_t attribute, int64_t type) const {
  const Handle space(H5Aget_space(attribute), H5Sclose);
  require(H5Sget_simple_extent_type(space) == H5S_SCALAR, "a list of values", "one", "attribute " + name);
  const Handle stored(H5Aget_type(attribute), H5Tclose);
  require(H5Tequal(stored, type) > 0, "another type of value", "that of the format", "attribute " + name);
}

int64_t H5File::int_attribute(const std::string& name) const {
  const Entered entered;
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (attribute < 0) fail(false, "an attribute " + name);
  check_scalar(name, attribute, H5T_STD_I64LE);
  int64_t value = 0;
  if (H5Aread(attribute, H5T_STD_I64LE, &value) < 0) fail(false, "to read attribute " + name);
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
