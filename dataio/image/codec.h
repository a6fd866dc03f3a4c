// The rooms behind image.h: one file per format, and the metadata that says how a picture is to be turned.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/tensor.h"

namespace hanok {

using Bytes = std::span<const uint8_t>;

struct ImageHeader {
  int64_t height = 0, width = 0;  // as stored
  int orientation = 1;            // EXIF: 1 upright ... 8; other values mean upright, too
};

/// The header of a file whose first bytes say JPEG / PNG / WebP. errors: kData if it is damaged or truncated.
ImageHeader jpeg_header(Bytes bytes);
ImageHeader png_header(Bytes bytes);
ImageHeader webp_header(Bytes bytes);

/// -> uint8 [H, W, 3] as stored; `header` comes from the same bytes and has passed the limits.
/// errors: kData if it is damaged or truncated
Tensor decode_jpeg(Bytes bytes, const ImageHeader& header);
Tensor decode_png(Bytes bytes, const ImageHeader& header);
Tensor decode_webp(Bytes bytes, const ImageHeader& header);

/// The orientation tag of an EXIF block (TIFF, with or without "Exif\0\0" in front), or of an XMP packet; empty if
/// there is none. Whatever the bytes say, nothing outside them is read.
std::optional<int> exif_orientation(Bytes exif);
std::optional<int> xmp_orientation(std::string_view xmp);

inline std::string_view as_text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline bool starts_with(Bytes bytes, std::string_view prefix) {
  return as_text(bytes).substr(0, prefix.size()) == prefix;
}

inline uint32_t read_u32_big(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | p[3];
}
inline uint32_t read_u32_little(const uint8_t* p) {
  return uint32_t{p[3]} << 24 | uint32_t{p[2]} << 16 | uint32_t{p[1]} << 8 | p[0];
}

}  // namespace hanok
