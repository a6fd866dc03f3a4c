// JPEG through libjpeg-turbo's classic interface, with the settings and the strictness of Pillow: a stream that ends
// before its last line is an error, damage inside the entropy-coded data is not.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "dataio/image/codec.h"
// After <cstdio>, which it needs but does not include.
#include <jpeglib.h>

namespace hanok {
namespace {

// Encoders write about ten scans. Each one costs a pass over all coefficients, however few bytes it takes.
constexpr int kMaxScans = 100;

enum class Status { kOk, kTruncated, kBroken };

/// libjpeg reports errors by a function that must not return. It jumps to the last guarded() call; between the two
/// there are only C frames and lambdas without objects to destroy.
struct JpegReader {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf jump;
  char message[JMSG_LENGTH_MAX] = "";

  JpegReader() = default;
  explicit JpegReader(Bytes bytes);  // delegates, so that the destructor runs when its body throws
  ~JpegReader() { jpeg_destroy_decompress(&info); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  template <class F>
  Status guarded(F&& call) {
    if (setjmp(jump)) return Status::kBroken;
    return call(&info) ? Status::kOk : Status::kTruncated;
  }
  template <class F>
  void require(F&& call) {
    const Status status = guarded(call);
    HANOK_REQUIRE(status != Status::kTruncated, kData)
        << "image: got a truncated JPEG file, expected data up to its last line; copy the file again";
    HANOK_REQUIRE(status == Status::kOk, kData)
        << "image: got a damaged JPEG file (" << message << "), expected one that libjpeg reads; convert the picture";
  }
};

[[noreturn]] void jump_out(j_common_ptr info) {
  auto* reader = static_cast<JpegReader*>(info->client_data);
  (*info->err->format_message)(info, reader->message);
  std::longjmp(reader->jump, 1);
}

void limit_scans(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= kMaxScans) return;
  auto* reader = static_cast<JpegReader*>(info->client_data);
  std::snprintf(reader->message, sizeof reader->message, "more than %d scans", kMaxScans);
  std::longjmp(reader->jump, 1);
}

void skip(j_decompress_ptr info, long num_bytes) {
  if (num_bytes <= 0) return;
  // Past the end nothing is left to read: the next read reports the truncation.
  const size_t n = std::min(info->src->bytes_in_buffer, static_cast<size_t>(num_bytes));
  info->src->next_input_byte += n;
  info->src->bytes_in_buffer -= n;
}

JpegReader::JpegReader(Bytes bytes) : JpegReader() {
  info.err = jpeg_std_error(&errors);
  errors.error_exit = jump_out;
  errors.output_message = [](j_common_ptr) {};
  errors.emit_message = [](j_common_ptr, int) {};
  info.client_data = this;
  source.next_input_byte = bytes.data();
  source.bytes_in_buffer = bytes.size();
  source.init_source = [](j_decompress_ptr) {};
  // "No data for now": the call in progress returns early instead of making up an end of image.
  source.fill_input_buffer = [](j_decompress_ptr) -> boolean { return FALSE; };
  source.skip_input_data = skip;
  source.resync_to_restart = jpeg_resync_to_restart;
  source.term_source = [](j_decompress_ptr) {};
  progress.progress_monitor = limit_scans;
  require([this](j_decompress_ptr d) {
    jpeg_create_decompress(d);
    d->client_data = this;  // jpeg_create_decompress keeps err and client_data, but says so only of err
    d->src = &source;
    d->progress = &progress;
    jpeg_save_markers(d, JPEG_APP0 + 1, 0xffff);
    return jpeg_read_header(d, TRUE) == JPEG_HEADER_OK;
  });
}

int orientation_of(const jpeg_decompress_struct& info) {
  constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
  std::vector<uint8_t> exif;  // may be cut into several markers
  std::string_view xmp;
  for (const jpeg_marker_struct* marker = info.marker_list; marker; marker = marker->next) {
    const Bytes data(marker->data, marker->data_length);
    if (marker->marker != JPEG_APP0 + 1) continue;
    if (starts_with(data, kExif)) {
      exif.insert(exif.end(), data.begin() + kExif.size(), data.end());
    } else if (starts_with(data, kXmp)) {
      xmp = as_text(data);
    }
  }
  const auto from_exif = exif_orientation(exif);
  return from_exif ? *from_exif : xmp_orientation(xmp).value_or(1);
}

/// Inverted CMYK, as Adobe programs write it and Pillow always takes it to be. source: Pillow's cmyk2rgb
void cmyk_to_rgb(const uint8_t* cmyk, uint8_t* rgb, int64_t width) {
  for (int64_t x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int white = cmyk[3];  // 255 - K
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[c]) * white + 128;
      rgb[c] = static_cast<uint8_t>(white - ((product + (product >> 8)) >> 8));
    }
  }
}

void grey_to_rgb(const uint8_t* grey, uint8_t* rgb, int64_t width) {
  for (int64_t x = 0; x < width; ++x, rgb += 3) rgb[0] = rgb[1] = rgb[2] = grey[x];
}

}  // namespace

ImageHeader jpeg_header(Bytes bytes) {
  const JpegReader reader(bytes);
  return {reader.info.image_height, reader.info.image_width, orientation_of(reader.info)};
}

Tensor decode_jpeg(Bytes bytes, const ImageHeader& header) {
  JpegReader reader(bytes);
  const int channels = reader.info.num_components;
  HANOK_REQUIRE(channels == 1 || channels == 3 || channels == 4, kData)
      << "image: got a JPEG file with " << channels << " components, expected 1, 3 or 4; convert the picture";
  reader.info.out_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 3 ? JCS_RGB : JCS_CMYK;
  reader.require([](j_decompress_ptr d) { return jpeg_start_decompress(d); });

  Tensor rgb_HWC = at::empty({header.height, header.width, 3}, at::kByte);
  auto* out = rgb_HWC.data_ptr<uint8_t>();
  std::vector<uint8_t> line(channels == 3 ? 0 : header.width * channels);
  for (int64_t y = 0; y < header.height; ++y, out += header.width * 3) {
    JSAMPROW row = channels == 3 ? out : line.data();
    reader.require([&row](j_decompress_ptr d) { return jpeg_read_scanlines(d, &row, 1) == 1; });
    if (channels == 1) grey_to_rgb(row, out, header.width);
    if (channels == 4) cmyk_to_rgb(row, out, header.width);
  }
  return rgb_HWC;
}

}  // namespace hanok
