// A text file read once from front to back, with its hash, and the decoding of its text to UTF-8.
#pragma once

#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "dataio/hash.h"

namespace hanok {

class SourceFile {
 public:
  static constexpr int kEnd = -1;
  /// A UTF-8 byte order mark is skipped. errors: kData if there is no such file, or it is UTF-16; kIo if it cannot be
  /// read
  explicit SourceFile(const std::string& path);
  ~SourceFile();
  SourceFile(const SourceFile&) = delete;
  SourceFile& operator=(const SourceFile&) = delete;
  /// The next byte, or kEnd. peek() leaves it there.
  int get() {
    const int byte = peek();
    position_ += byte != kEnd;
    return byte;
  }
  int peek() {
    if (position_ == buffer_.size() && !fill()) return kEnd;
    return buffer_[position_];
  }
  const std::string& path() const { return path_; }
  uint64_t bytes_hash() const { return hash_.value(); }

 private:
  bool fill();
  std::string path_;
  std::FILE* file_ = nullptr;
  std::vector<unsigned char> buffer_;
  size_t buffer_bytes_ = 0, position_ = 0;
  Hash64 hash_;
};

bool is_utf8(const std::string& text);

/// Bytes of the declared encoding -> UTF-8. Not for several threads at once.
class TextDecoder {
 public:
  /// `encoding`: utf8 or cp949. errors: kIo if the system cannot convert it
  explicit TextDecoder(const std::string& encoding);
  ~TextDecoder();
  TextDecoder(const TextDecoder&) = delete;
  TextDecoder& operator=(const TextDecoder&) = delete;
  /// Nothing if the bytes are not of that encoding, or if there is a zero among them.
  std::optional<std::string> decode(const std::string& bytes);
  /// What is wrong with bytes that decode() refused: "not UTF-8; set data.sets.NAME.encoding: cp949 if ..."
  std::string advice(const std::string& dataset_name, const std::string& bytes) const;

 private:
  std::string encoding_;
  void* converter_ = nullptr;  // iconv_t
};

}  // namespace hanok
