// Small encoders for the tests of image.h: pictures whose bytes the test controls.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hanok::pictures {

using File = std::vector<uint8_t>;

/// A PNG chunk with its length and checksum.
std::string png_chunk(const std::string& type, const std::string& data);
std::string zlib_compressed(const std::string& data);
/// Lines are as PNG stores them, without filter byte. `before` are chunks ahead of the pixels.
File png(uint32_t width,
         uint32_t height,
         int color,
         int depth,
         const std::vector<std::string>& lines,
         const std::string& before = "");

struct JpegOptions {
  int channels = 3;  // 1 grey, 3 RGB, 4 CMYK (stored as given)
  bool progressive = false;
  std::string app1;  // content of an APP1 marker
};
/// pixels [H, W, channels]
File jpeg(int width, int height, const std::vector<uint8_t>& pixels, const JpegOptions& options = {});

/// Lossless, pixels [H, W, 4].
File webp(int width, int height, const std::vector<uint8_t>& rgba);
/// Lossy, pixels [H, W, 3].
File lossy_webp(int width, int height, const std::vector<uint8_t>& rgb);
/// An animation of one frame at (x, y) of a larger canvas; `still` is a file from webp().
File animated_webp(int canvas_width, int canvas_height, int x, int y, int width, int height, const File& still);

/// TIFF block with the orientation tag, little or big endian.
std::string exif(int orientation, bool is_big_endian = false);

}  // namespace hanok::pictures
