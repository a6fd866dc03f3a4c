// The header of a safetensors file as hostile input: every number in it is checked before it is used.
// Rules: the format's README (huggingface/safetensors) and the Trail of Bits audit of 2023-05; stricter than the
// reference in that duplicate and unknown keys are refused.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "dataio/safetensors.h"
#include "dataio/store/strict_json.h"

namespace hanok {

namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors data are little-endian and used in place");

constexpr int64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxDims = 64;  // as many as libtorch's iterators take
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

struct DtypeRow {
  std::string_view name;
  at::ScalarType dtype;
};
constexpr DtypeRow kDtypes[] = {
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
};

std::vector<std::string_view> dtype_names() {
  std::vector<std::string_view> names;
  for (const DtypeRow& row : kDtypes) names.push_back(row.name);
  return names;
}

// Reads {"__metadata__": {key: text}, NAME: {"dtype": text, "shape": [n...], "data_offsets": [begin, end]}} as events,
// without building a tree: memory is bounded by what is kept, depth by the states, and a repeated key cannot hide.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(const std::string& file, int64_t data_bytes, SafetensorsHeader& header)
      : file_(file), data_bytes_(data_bytes), header_(header) {}

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a number that is no 64-bit integer"); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (where_ != Where::kList) return refuse("a number");
    HANOK_REQUIRE(value <= static_cast<uint64_t>(kMaxInt64), kCheckpoint)
        << what() << ": got " << value << ", expected at most 2^63 - 1; " << file_ << kAdvice;
    HANOK_REQUIRE(list_.size() < kMaxDims, kCheckpoint)
        << what() << ": got more than " << kMaxDims << " numbers, expected at most that; " << file_ << kAdvice;
    list_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& text) override {
    if (where_ == Where::kMetadata) {
      header_.metadata[field_] = std::move(text);
    } else if (where_ == Where::kTensor && field_ == "dtype") {
      const std::optional<at::ScalarType> dtype = dtype_from_name(text);
      HANOK_REQUIRE(dtype.has_value(), kCheckpoint) << what() << ": got " << shown(text) << ", expected one of "
                                                    << dtype_names() << "; " << file_ << "; convert the tensor first";
      dtype_ = dtype;
    } else {
      return refuse("a string");
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (where_ == Where::kStart) {
      where_ = Where::kFile;
    } else if (where_ == Where::kFile) {
      where_ = name_ == "__metadata__" ? Where::kMetadata : Where::kTensor;
    } else {
      return refuse("an object");
    }
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kTensor) finish_tensor();
    where_ = where_ == Where::kFile ? Where::kEnd : Where::kFile;
    return true;
  }

  bool start_array(std::size_t) override {
    if (where_ != Where::kTensor || (field_ != "shape" && field_ != "data_offsets")) return refuse("a list");
    where_ = Where::kList;
    list_.clear();
    return true;
  }

  bool end_array() override {
    where_ = Where::kTensor;
    (field_ == "shape" ? shape_ : offsets_) = list_;
    return true;
  }

  bool key(string_t& text) override {
    bool is_new = true;
    if (where_ == Where::kFile) {
      name_ = std::move(text);
      is_new = name_ == "__metadata__" ? !std::exchange(has_metadata_, true) : !header_.tensors.contains(name_);
      field_.clear();
      dtype_.reset();
      shape_.reset();
      offsets_.reset();
    } else {
      field_ = std::move(text);
      if (where_ == Where::kMetadata) {
        is_new = header_.metadata.emplace(field_, "").second;
      } else if (field_ == "dtype") {
        is_new = !dtype_;
      } else if (field_ == "shape") {
        is_new = !shape_;
      } else {
        HANOK_REQUIRE(field_ == "data_offsets", kCheckpoint)
            << "tensor " << shown(name_) << ": got a key " << shown(field_)
            << ", expected dtype, shape and data_offsets; " << file_ << kAdvice;
        is_new = !offsets_;
      }
    }
    HANOK_REQUIRE(is_new, kCheckpoint) << what() << ": got this key twice, expected once; " << file_ << kAdvice;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    HANOK_FAIL(kCheckpoint) << "safetensors header: got an error at its byte " << position
                            << ", expected one complete JSON object; " << file_ << kAdvice;
  }

 private:
  enum class Where { kStart, kFile, kMetadata, kTensor, kList, kEnd };
  static constexpr std::string_view kAdvice = "; the file is damaged or not safetensors: fetch or write it again";

  std::string what() const {
    if (where_ == Where::kStart) return "safetensors header";
    const std::string of = name_ == "__metadata__" ? "__metadata__" : concat("tensor ", shown(name_));
    return field_.empty() ? of : concat(of, ", ", shown(field_));
  }

  bool refuse(std::string_view got) {
    std::string_view expected = "a JSON object";
    if (where_ == Where::kMetadata) expected = "a string";
    if (where_ == Where::kTensor) expected = field_ == "dtype" ? "a string" : "a list";
    if (where_ == Where::kList) expected = "integers from 0 to 2^63 - 1";
    HANOK_FAIL(kCheckpoint) << what() << ": got " << got << ", expected " << expected << "; " << file_ << kAdvice;
  }

  void finish_tensor() {
    field_.clear();
    HANOK_REQUIRE(dtype_ && shape_ && offsets_, kCheckpoint)
        << what() << ": got an incomplete entry, expected dtype, shape and data_offsets; " << file_ << kAdvice;
    HANOK_REQUIRE(offsets_->size() == 2, kCheckpoint)
        << what() << ", data_offsets: got " << offsets_->size() << " numbers, expected 2; " << file_ << kAdvice;
    const int64_t begin = offsets_->at(0), end = offsets_->at(1);
    HANOK_REQUIRE(begin <= end && end <= data_bytes_, kCheckpoint)
        << what() << ": got bytes " << begin << " to " << end << ", expected a stretch of the " << data_bytes_
        << " data bytes that the file has; " << file_ << "; the file is cut short or damaged: fetch or write it again";
    const std::optional<int64_t> size = checked_size_bytes(*dtype_, *shape_);
    HANOK_REQUIRE(size.has_value(), kCheckpoint)
        << what() << ": got shape " << *shape_ << ", expected one whose size fits in 63 bits; " << file_ << kAdvice;
    HANOK_REQUIRE(*size == end - begin, kCheckpoint)
        << what() << ": got " << end - begin << " bytes, expected " << *size << " for shape " << *shape_ << " of "
        << dtype_name(*dtype_) << "; " << file_ << kAdvice;
    header_.tensors[name_] = {*dtype_, std::move(*shape_), begin, end};
  }

  const std::string& file_;
  const int64_t data_bytes_;
  SafetensorsHeader& header_;
  Where where_ = Where::kStart;
  bool has_metadata_ = false;
  std::string name_;   // key at the top: the tensor under way, or "__metadata__"
  std::string field_;  // key within it
  std::vector<int64_t> list_;
  std::optional<at::ScalarType> dtype_;
  std::optional<std::vector<int64_t>> shape_, offsets_;
};

// Data lie end to end: no hole that could carry something else, no byte that two tensors share.
void check_tiling(const SafetensorsHeader& header, int64_t data_bytes, const std::string& file) {
  std::vector<const std::pair<const std::string, TensorEntry>*> order;
  for (const auto& item : header.tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  int64_t next = 0;
  for (const auto* item : order) {
    HANOK_REQUIRE(item->second.begin == next, kCheckpoint)
        << "tensor " << shown(item->first) << ": got data from byte " << item->second.begin << ", expected from byte "
        << next << " (no holes, no overlaps); " << file << "; the file is damaged or forged: fetch or write it again";
    next = item->second.end;
  }
  HANOK_REQUIRE(next == data_bytes, kCheckpoint)
      << "safetensors data: got " << data_bytes << " bytes, expected the " << next << " that the header describes; "
      << file << "; the file is damaged or forged: fetch or write it again";
}

}  // namespace

std::string_view dtype_name(at::ScalarType dtype) {
  for (const DtypeRow& row : kDtypes) {
    if (row.dtype == dtype) return row.name;
  }
  HANOK_FAIL(kShape) << "dtype: got " << c10::toString(dtype) << ", expected one of " << dtype_names()
                     << "; safetensors file; convert the tensor first";
}

std::optional<at::ScalarType> dtype_from_name(std::string_view name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

// Zeros are left out of the product: [2^62, 2^62, 0] has no size that strides could be computed for.
std::optional<int64_t> checked_size_bytes(at::ScalarType dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(dtype));
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) empty = true;
    if (dim > 0 && __builtin_mul_overflow(bytes, dim, &bytes)) return std::nullopt;
  }
  return empty ? 0 : bytes;
}

int64_t size_bytes(at::ScalarType dtype, const std::vector<int64_t>& shape) {
  const std::optional<int64_t> size = checked_size_bytes(dtype, shape);
  HANOK_REQUIRE(size.has_value(), kShape)
      << "tensor size: got shape " << shape << ", expected dims >= 0 whose size fits in 63 bits; "
      << c10::toString(dtype) << "; check where the shape comes from";
  return *size;
}

SafetensorsHeader parse_safetensors_header(std::string_view bytes, int64_t file_size, const std::string& file) {
  constexpr int64_t kLengthBytes = 8;
  HANOK_REQUIRE(file_size >= kLengthBytes && bytes.size() >= kLengthBytes, kCheckpoint)
      << "safetensors file: got " << file_size << " bytes, expected at least " << kLengthBytes << "; " << file
      << "; the file is cut short: fetch or write it again";
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  const auto limit = static_cast<uint64_t>(std::min(kMaxHeaderBytes, file_size - kLengthBytes));
  HANOK_REQUIRE(length <= limit && length <= bytes.size() - kLengthBytes, kCheckpoint)
      << "safetensors header length: got " << length << ", expected at most " << limit << " (the file has " << file_size
      << " bytes); " << file << "; the file is cut short or not safetensors: fetch or write it again";
  const std::string_view text = bytes.substr(kLengthBytes, length);
  // The JSON library skips a byte order mark, and takes a zero byte for the end: both would let a second meaning in.
  HANOK_REQUIRE(text.starts_with('{') && text.find('\0') == std::string_view::npos, kCheckpoint)
      << "safetensors header: got " << shown(text.substr(0, 16)) << ", expected text that begins with '{'; " << file
      << "; the file is damaged or not safetensors: fetch or write it again";
  SafetensorsHeader header;
  header.data_begin = kLengthBytes + static_cast<int64_t>(length);
  HeaderReader reader(file, file_size - header.data_begin, header);
  Json::sax_parse(text.begin(), text.end(), &reader);
  check_tiling(header, file_size - header.data_begin, file);
  return header;
}

}  // namespace hanok
