// WebP through libwebp's still decoder. The RIFF container is walked here: for EXIF and XMP, and for the first frame of
// an animation, which that decoder refuses as a whole.
#include <webp/decode.h>

#include <algorithm>

#include "base/error.h"
#include "dataio/image/codec.h"

namespace hanok {
namespace {

constexpr size_t kRiffHeaderBytes = 12, kChunkHeaderBytes = 8, kFrameHeaderBytes = 16;
constexpr uint8_t kHasXmp = 0x04, kHasExif = 0x08;  // flags of chunk VP8X

struct Chunk {
  std::string_view type;
  Bytes data;
  Bytes with_header;
};

/// Takes the next chunk off `rest`; false at the end. A chunk that reaches beyond the end is cut.
bool next_chunk(Bytes& rest, Chunk& chunk) {
  if (rest.size() < kChunkHeaderBytes) return false;
  const size_t size = std::min<size_t>(read_u32_little(rest.data() + 4), rest.size() - kChunkHeaderBytes);
  chunk = {as_text(rest.first(4)), rest.subspan(kChunkHeaderBytes, size), rest.first(kChunkHeaderBytes + size)};
  rest = rest.subspan(std::min(rest.size(), kChunkHeaderBytes + size + size % 2));
  return true;
}

Bytes find_chunk(Bytes rest, std::string_view type) {
  for (Chunk chunk; next_chunk(rest, chunk);) {
    if (chunk.type == type) return chunk.data;
  }
  return {};
}

[[noreturn]] void fail(std::string_view what) {
  HANOK_FAIL(kData) << "image: got a damaged WebP file (" << what
                    << "), expected one that libwebp reads; copy or convert the picture";
}

void require_ok(VP8StatusCode status) {
  switch (status) {
    case VP8_STATUS_OK: return;
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED: fail("truncated");
    case VP8_STATUS_OUT_OF_MEMORY: fail("no memory for it");
    case VP8_STATUS_UNSUPPORTED_FEATURE: fail("unsupported feature");
    default: fail("broken bitstream");
  }
}

WebPBitstreamFeatures features_of(Bytes bytes) {
  WebPBitstreamFeatures features;
  require_ok(WebPGetFeatures(bytes.data(), bytes.size(), &features));
  return features;
}

/// What the container says it holds; a file that ends earlier is truncated.
Bytes container(Bytes bytes) {
  const uint64_t size = uint64_t{read_u32_little(bytes.data() + 4)} + 8;
  if (size > bytes.size()) fail("truncated");
  return bytes.first(size).subspan(std::min<size_t>(kRiffHeaderBytes, size));
}

int orientation_of(Bytes chunks) {
  const Bytes vp8x = find_chunk(chunks, "VP8X");
  if (vp8x.empty()) return 1;
  std::optional<int> orientation;
  if (vp8x[0] & kHasExif) orientation = exif_orientation(find_chunk(chunks, "EXIF"));
  if (!orientation && vp8x[0] & kHasXmp) orientation = xmp_orientation(as_text(find_chunk(chunks, "XMP ")));
  return orientation.value_or(1);
}

void decode_at(Bytes bytes, uint8_t* out, int64_t stride, size_t num_bytes) {
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) fail("libwebp is of another version than its header");
  config.output.colorspace = MODE_RGB;  // alpha is dropped, not blended: as convert("RGB") of RGBA
  config.output.is_external_memory = 1;
  config.output.u.RGBA.rgba = out;
  config.output.u.RGBA.stride = static_cast<int>(stride);
  config.output.u.RGBA.size = num_bytes;
  require_ok(WebPDecode(bytes.data(), bytes.size(), &config));
}

int64_t read_u24(const uint8_t* p) {
  return int64_t{p[0]} | int64_t{p[1]} << 8 | int64_t{p[2]} << 16;
}

/// The first frame on a black canvas (its alpha is dropped, too).
Tensor decode_first_frame(Bytes chunks, const ImageHeader& header) {
  const Bytes frame = find_chunk(chunks, "ANMF");
  if (frame.size() < kFrameHeaderBytes) fail("an animation without frames");
  const int64_t x = 2 * read_u24(frame.data()), y = 2 * read_u24(frame.data() + 3);
  Bytes rest = frame.subspan(kFrameHeaderBytes);
  for (Chunk chunk; next_chunk(rest, chunk);) {
    if (chunk.type != "VP8 " && chunk.type != "VP8L") continue;
    const WebPBitstreamFeatures features = features_of(chunk.with_header);
    if (x + features.width > header.width || y + features.height > header.height) fail("a frame beyond its canvas");
    Tensor rgb_HWC = at::zeros({header.height, header.width, 3}, at::kByte);
    const int64_t stride = header.width * 3, offset = y * stride + x * 3;
    decode_at(chunk.with_header, rgb_HWC.data_ptr<uint8_t>() + offset, stride, rgb_HWC.numel() - offset);
    return rgb_HWC;
  }
  fail("a frame without pixels");
}

}  // namespace

ImageHeader webp_header(Bytes bytes) {
  const Bytes chunks = container(bytes);
  const WebPBitstreamFeatures features = features_of(bytes);
  return {features.height, features.width, orientation_of(chunks)};
}

Tensor decode_webp(Bytes bytes, const ImageHeader& header) {
  if (features_of(bytes).has_animation) return decode_first_frame(container(bytes), header);
  Tensor rgb_HWC = at::empty({header.height, header.width, 3}, at::kByte);
  decode_at(bytes, rgb_HWC.data_ptr<uint8_t>(), header.width * 3, rgb_HWC.numel());
  return rgb_HWC;
}

}  // namespace hanok
