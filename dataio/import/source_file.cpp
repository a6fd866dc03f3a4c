#include "dataio/import/source_file.h"

#include <iconv.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace hanok {

namespace {
constexpr size_t kMaxBufferBytes = 1 << 20;
const iconv_t kNoConverter = reinterpret_cast<iconv_t>(-1);
}  // namespace

SourceFile::SourceFile(const std::string& path) : path_(path) {
  struct stat facts {};
  const bool is_there = stat(path.c_str(), &facts) == 0;
  HANOK_REQUIRE(is_there && S_ISREG(facts.st_mode), kData)
      << "data file: got " << (is_there ? "something that is not a file" : std::strerror(errno))
      << ", expected a readable file; " << path << "; correct data.sets.*.path";
  file_ = std::fopen(path.c_str(), "rb");
  HANOK_REQUIRE(file_ != nullptr, kIo) << "data file: got " << std::strerror(errno) << ", expected a readable file; "
                                       << path << "; correct data.sets.*.path or its rights";
  buffer_bytes_ = std::min(kMaxBufferBytes, static_cast<size_t>(facts.st_size) + 1);  // + 1: the end is seen at once
  fill();
  const auto begins_with = [&](std::initializer_list<unsigned char> mark) {
    return buffer_.size() >= mark.size() && std::equal(mark.begin(), mark.end(), buffer_.begin());
  };
  if (begins_with({0xef, 0xbb, 0xbf})) position_ = 3;
  HANOK_REQUIRE(!begins_with({0xff, 0xfe}) && !begins_with({0xfe, 0xff}), kData)
      << "data file: got UTF-16 text, expected UTF-8 or CP949; " << path << "; save it as UTF-8";
}

SourceFile::~SourceFile() {
  if (file_) std::fclose(file_);
}

bool SourceFile::fill() {
  buffer_.resize(buffer_bytes_);
  position_ = 0;
  buffer_.resize(std::fread(buffer_.data(), 1, buffer_bytes_, file_));
  HANOK_REQUIRE(!std::ferror(file_), kIo) << "data file: got " << std::strerror(errno) << " while reading, expected "
                                          << "its bytes; " << path_;
  hash_.add(buffer_.data(), buffer_.size());
  return !buffer_.empty();
}

bool is_utf8(const std::string& text) {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const auto* const end = s + text.size();
  const auto continues = [&](int count) {
    if (end - s <= count) return false;
    for (int i = 1; i <= count; ++i) {
      if ((s[i] & 0xc0) != 0x80) return false;
    }
    return true;
  };
  while (s < end) {
    if (*s < 0x80) {
      ++s;
    } else if (*s >= 0xc2 && *s <= 0xdf) {
      if (!continues(1)) return false;
      s += 2;
    } else if (*s >= 0xe0 && *s <= 0xef) {
      // E0 80..9F is overlong, ED A0..BF is a surrogate.
      if (!continues(2) || (*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f)) return false;
      s += 3;
    } else if (*s >= 0xf0 && *s <= 0xf4) {
      // F0 80..8F is overlong, F4 90..BF is beyond U+10FFFF.
      if (!continues(3) || (*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f)) return false;
      s += 4;
    } else {
      return false;
    }
  }
  return true;
}

TextDecoder::TextDecoder(const std::string& encoding) : encoding_(encoding) {
  if (encoding_ == "utf8") return;
  converter_ = iconv_open("UTF-8", "CP949");
  HANOK_REQUIRE(converter_ != kNoConverter, kIo)
      << "text encoding cp949: got " << std::strerror(errno) << " from iconv, expected a converter; install glibc's "
      << "converters (Debian 13 and Ubuntu 24.04: libc-gconv-modules-extra), or save the file as UTF-8";
}

TextDecoder::~TextDecoder() {
  if (converter_ && converter_ != kNoConverter) iconv_close(converter_);
}

std::optional<std::string> TextDecoder::decode(const std::string& bytes) {
  if (bytes.find('\0') != std::string::npos) return std::nullopt;  // no text, and paths would end there
  if (!converter_) return is_utf8(bytes) ? std::optional(bytes) : std::nullopt;
  std::string out(3 * bytes.size(), '\0');  // two bytes of CP949 become at most three of UTF-8
  char* from = const_cast<char*>(bytes.data());
  char* to = out.data();
  size_t num_from = bytes.size(), num_to = out.size();
  iconv(converter_, nullptr, nullptr, nullptr, nullptr);
  if (iconv(converter_, &from, &num_from, &to, &num_to) == static_cast<size_t>(-1)) return std::nullopt;
  out.resize(out.size() - num_to);
  return out;
}

std::string TextDecoder::advice(const std::string& dataset_name, const std::string& bytes) const {
  if (const size_t zero = bytes.find('\0'); zero != std::string::npos)
    return concat("no text: byte ", zero + 1, " is a zero; remove it, or write the file again from its source");
  const std::string key = "data.sets." + dataset_name + ".encoding";
  return converter_ ? "not CP949; set " + key + ": utf8 if the file is UTF-8"
                    : "not UTF-8; set " + key + ": cp949 if the file comes from Korean Windows, or save it as UTF-8";
}

}  // namespace hanok
