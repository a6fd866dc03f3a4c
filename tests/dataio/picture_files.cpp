#include "tests/dataio/picture_files.h"

#include <webp/encode.h>
#include <zlib.h>

#include <cstdio>
#include <cstdlib>
// After <cstdio>, which it needs but does not include.
#include <jpeglib.h>

namespace hanok::pictures {
namespace {

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24),
          static_cast<char>(value >> 16),
          static_cast<char>(value >> 8),
          static_cast<char>(value)};
}
std::string little_endian(uint32_t value, int num_bytes) {
  std::string out;
  for (int i = 0; i < num_bytes; ++i) out += static_cast<char>(value >> (8 * i));
  return out;
}
File as_file(const std::string& text) {
  return {text.begin(), text.end()};
}

}  // namespace

std::string png_chunk(const std::string& type, const std::string& data) {
  const std::string body = type + data;
  const auto crc = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(static_cast<uint32_t>(crc));
}

std::string zlib_compressed(const std::string& data) {
  std::string out(compressBound(data.size()), '\0');
  uLongf size = out.size();
  compress(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(data.data()), data.size());
  out.resize(size);
  return out;
}

File png(uint32_t width,
         uint32_t height,
         int color,
         int depth,
         const std::vector<std::string>& lines,
         const std::string& before) {
  std::string rows;
  for (const std::string& line : lines) rows += std::string(1, '\0') + line;
  std::string head = big_endian(width) + big_endian(height);
  for (const int byte : {depth, color, 0, 0, 0}) head += static_cast<char>(byte);
  return as_file("\x89PNG\r\n\x1a\n" + png_chunk("IHDR", head) + before + png_chunk("IDAT", zlib_compressed(rows)) +
                 png_chunk("IEND", ""));
}

File jpeg(int width, int height, const std::vector<uint8_t>& pixels, const JpegOptions& options) {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &bytes, &size);
  info.image_width = width;
  info.image_height = height;
  info.input_components = options.channels;
  info.in_color_space = options.channels == 1 ? JCS_GRAYSCALE : options.channels == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 100, TRUE);
  if (options.progressive) jpeg_simple_progression(&info);
  jpeg_start_compress(&info, TRUE);
  if (!options.app1.empty()) {
    const auto* data = reinterpret_cast<const JOCTET*>(options.app1.data());
    jpeg_write_marker(&info, JPEG_APP0 + 1, data, static_cast<unsigned>(options.app1.size()));
  }
  for (int y = 0; y < height; ++y) {
    auto* row = const_cast<JSAMPROW>(pixels.data() + static_cast<size_t>(y) * width * options.channels);
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  jpeg_destroy_compress(&info);
  File file(bytes, bytes + size);
  std::free(bytes);
  return file;
}

File webp(int width, int height, const std::vector<uint8_t>& rgba) {
  WebPConfig config;
  WebPPicture picture;
  WebPConfigInit(&config);
  WebPPictureInit(&picture);
  config.lossless = 1;
  config.exact = 1;  // colours under full transparency, too
  picture.use_argb = 1;
  picture.width = width;
  picture.height = height;
  WebPMemoryWriter writer;
  WebPMemoryWriterInit(&writer);
  picture.writer = WebPMemoryWrite;
  picture.custom_ptr = &writer;
  WebPPictureImportRGBA(&picture, rgba.data(), width * 4);
  WebPEncode(&config, &picture);
  WebPPictureFree(&picture);
  File file(writer.mem, writer.mem + writer.size);
  WebPMemoryWriterClear(&writer);
  return file;
}

File lossy_webp(int width, int height, const std::vector<uint8_t>& rgb) {
  uint8_t* bytes = nullptr;
  const size_t size = WebPEncodeRGB(rgb.data(), width, height, width * 3, 75, &bytes);
  File file(bytes, bytes + size);
  WebPFree(bytes);
  return file;
}

File animated_webp(int canvas_width, int canvas_height, int x, int y, int width, int height, const File& still) {
  const std::string bitstream(still.begin() + 12, still.end());  // chunk VP8L with its header
  const auto chunk = [](const std::string& type, const std::string& data) {
    return type + little_endian(static_cast<uint32_t>(data.size()), 4) + data;
  };
  const std::string canvas = little_endian(canvas_width - 1, 3) + little_endian(canvas_height - 1, 3);
  const std::string place = little_endian(x / 2, 3) + little_endian(y / 2, 3);
  const std::string frame = place + little_endian(width - 1, 3) + little_endian(height - 1, 3) + little_endian(100, 4);
  const std::string body = "WEBP" + chunk("VP8X", little_endian(0x12, 4) + canvas) +
                           chunk("ANIM", std::string(6, '\0')) + chunk("ANMF", frame + bitstream);
  return as_file(chunk("RIFF", body));
}

std::string exif(int orientation, bool is_big_endian) {
  const auto value = static_cast<char>(orientation);
  if (is_big_endian) {
    return std::string("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", 19) + value + std::string(6, '\0');
  }
  return std::string("II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", 18) + value + std::string(7, '\0');
}

}  // namespace hanok::pictures
