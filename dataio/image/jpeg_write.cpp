#include <csetjmp>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "dataio/image.h"
// After <cstdio>, which it needs but does not include.
#include <jpeglib.h>

namespace hanok {
namespace {

/// libjpeg reports errors by a function that must not return: it jumps back to write_all().
struct JpegWriter {
  jpeg_compress_struct info{};
  jpeg_error_mgr errors{};
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";
  unsigned char* bytes = nullptr;
  unsigned long size = 0;

  ~JpegWriter() {
    jpeg_destroy_compress(&info);
    std::free(bytes);
  }
};

[[noreturn]] void jump_out(j_common_ptr info) {
  auto* writer = static_cast<JpegWriter*>(info->client_data);
  (*info->err->format_message)(info, writer->message);
  std::longjmp(writer->jump, 1);
}

/// Between setjmp and the jump there are only C frames, and nothing to destroy.
bool write_all(JpegWriter& writer, const uint8_t* rgb, int height, int width, int quality) {
  writer.info.err = jpeg_std_error(&writer.errors);
  writer.errors.error_exit = jump_out;
  writer.info.client_data = &writer;
  if (setjmp(writer.jump)) return false;
  jpeg_create_compress(&writer.info);
  jpeg_mem_dest(&writer.info, &writer.bytes, &writer.size);
  writer.info.image_height = static_cast<JDIMENSION>(height);
  writer.info.image_width = static_cast<JDIMENSION>(width);
  writer.info.input_components = 3;
  writer.info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&writer.info);
  jpeg_set_quality(&writer.info, quality, TRUE);
  jpeg_start_compress(&writer.info, TRUE);
  while (writer.info.next_scanline < writer.info.image_height) {
    auto* row = const_cast<JSAMPLE*>(rgb + static_cast<size_t>(writer.info.next_scanline) * width * 3);
    jpeg_write_scanlines(&writer.info, &row, 1);
  }
  jpeg_finish_compress(&writer.info);
  return true;
}

}  // namespace

std::vector<uint8_t> encode_jpeg(const Tensor& rgb_CHW, int quality) {
  HANOK_REQUIRE(rgb_CHW.dim() == 3 && rgb_CHW.size(0) == 3 && rgb_CHW.scalar_type() == at::kByte, kShape)
      << "image: got a tensor of " << rgb_CHW.dim() << " dims, expected uint8 [3, H, W]";
  const Tensor rgb_HWC = rgb_CHW.permute({1, 2, 0}).contiguous();
  JpegWriter writer;
  const bool done = write_all(writer,
                              rgb_HWC.const_data_ptr<uint8_t>(),
                              static_cast<int>(rgb_HWC.size(0)),
                              static_cast<int>(rgb_HWC.size(1)),
                              quality);
  HANOK_REQUIRE(done, kData) << "image: got '" << writer.message << "' from libjpeg, expected a picture that it writes";
  return {writer.bytes, writer.bytes + writer.size};
}

}  // namespace hanok
