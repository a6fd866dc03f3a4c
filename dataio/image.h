// Encoded picture -> RGB bytes, with limits checked before anything is decoded.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/tensor.h"

namespace hanok {

struct ImageLimits {
  int64_t max_pixels = 64 << 20;  // width * height, from the header; key data.max_image_pixels
  int64_t max_encoded_bytes = 256 << 20;
};

enum class ImageFormat { kJpeg, kPng, kWebp };

struct ImageInfo {
  ImageFormat format;
  int64_t height = 0, width = 0;  // after EXIF rotation
};

/// Reads the header only.
/// errors: kData if it is none of the formats, truncated, or beyond the limits (says which limit and key).
ImageInfo inspect_image(std::span<const uint8_t> bytes, const ImageLimits& limits);
/// -> uint8 [3, H, W], RGB, rotated as EXIF (or XMP) says; palette, alpha, 16 bit, grey and CMYK converted as
/// transformers' load_image does: PIL's exif_transpose, then convert("RGB"), which drops alpha and clips 16-bit grey.
/// Channels lie last in memory (strides 1, 3 W, 3): what resize_bicubic takes without a copy.
/// Of an animation the first frame. Peak memory is a small multiple of the limits (at most 20 bytes a pixel plus the
/// encoded bytes), whatever the bytes claim. May be called from several threads at once.
/// errors: kData for damaged or truncated data, and as inspect_image
Tensor decode_image(std::span<const uint8_t> bytes, const ImageLimits& limits);

/// uint8 [3, H, W] RGB -> a JPEG file of this quality (1 to 100). errors: kShape; kData beyond 65500 pixels a side
std::vector<uint8_t> encode_jpeg(const Tensor& rgb_CHW, int quality);

}  // namespace hanok
