// Encoded picture -> RGB bytes, with limits checked before anything is decoded.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/tensor.h"

namespace hanok {

struct ImageLimits {
  int64_t max_pixels = 64 << 20;  // width * height, from the header
  int64_t max_encoded_bytes = 256 << 20;
};

enum class ImageFormat { kJpeg, kPng, kWebp };

struct ImageInfo {
  ImageFormat format;
  int64_t height = 0, width = 0;  // after EXIF rotation
};

/// Reads the header only. errors: kData if it is none of the formats, truncated, or beyond the limits (says which limit
/// and key).
ImageInfo inspect_image(std::span<const uint8_t> bytes, const ImageLimits& limits);
/// -> uint8 [3, H, W], RGB, rotated as EXIF says; palette, alpha, 16 bit, grey and CMYK converted as PIL's
/// convert("RGB") does. Peak memory is bounded by a small multiple of the limits, whatever the bytes claim. errors:
/// kData for damaged or truncated data
Tensor decode_image(std::span<const uint8_t> bytes, const ImageLimits& limits);

}  // namespace hanok
