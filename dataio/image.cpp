#include "dataio/image.h"

#include "base/error.h"
#include "dataio/image/codec.h"

namespace hanok {
namespace {

struct Codec {
  ImageFormat format;
  std::string_view name;
  bool (*matches)(Bytes);
  ImageHeader (*header)(Bytes);
  Tensor (*decode)(Bytes, const ImageHeader&);
};

constexpr Codec kCodecs[] = {
    {ImageFormat::kJpeg, "JPEG", [](Bytes b) { return starts_with(b, "\xff\xd8\xff"); }, jpeg_header, decode_jpeg},
    {ImageFormat::kPng, "PNG", [](Bytes b) { return starts_with(b, "\x89PNG\r\n\x1a\n"); }, png_header, decode_png},
    {ImageFormat::kWebp,
     "WebP",
     [](Bytes b) { return starts_with(b, "RIFF") && b.size() >= 12 && starts_with(b.subspan(8), "WEBP"); },
     webp_header,
     decode_webp},
};

const Codec& codec_of(Bytes bytes, const ImageLimits& limits) {
  HANOK_REQUIRE(static_cast<int64_t>(bytes.size()) <= limits.max_encoded_bytes, kData)
      << "image: got a file of " << bytes.size() << " bytes, expected at most " << limits.max_encoded_bytes
      << "; shrink the picture";
  for (const Codec& codec : kCodecs) {
    if (codec.matches(bytes)) return codec;
  }
  std::string begin;
  for (size_t i = 0; i < bytes.size() && i < 8; ++i) {
    begin += "0123456789abcdef"[bytes[i] >> 4];
    begin += "0123456789abcdef"[bytes[i] & 15];
  }
  HANOK_FAIL(kData) << "image: got a file that begins with bytes '" << begin
                    << "', expected JPEG, PNG or WebP; convert the picture";
}

ImageHeader checked_header(const Codec& codec, Bytes bytes, const ImageLimits& limits) {
  const ImageHeader header = codec.header(bytes);
  HANOK_REQUIRE(header.height > 0 && header.width > 0, kData)
      << "image: got " << header.width << " x " << header.height << " pixels, expected at least 1 x 1; " << codec.name
      << " header";
  // Sides are below 2^31, so that their product fits.
  HANOK_REQUIRE(header.height * header.width <= limits.max_pixels, kData)
      << "image: got " << header.width << " x " << header.height << " = " << header.height * header.width
      << " pixels, expected at most " << limits.max_pixels << "; " << codec.name
      << " header; raise data.max_image_pixels or shrink the picture";
  return header;
}

bool swaps_sides(int orientation) {
  return orientation >= 5 && orientation <= 8;
}

Tensor turned(const Tensor& rgb_HWC, int orientation) {
  switch (orientation) {
    case 2: return rgb_HWC.flip({1});
    case 3: return rgb_HWC.flip({0, 1});
    case 4: return rgb_HWC.flip({0});
    case 5: return rgb_HWC.transpose(0, 1).contiguous();
    case 6: return rgb_HWC.transpose(0, 1).contiguous().flip({1});
    case 7: return rgb_HWC.transpose(0, 1).contiguous().flip({0, 1});
    case 8: return rgb_HWC.transpose(0, 1).contiguous().flip({0});
    default: return rgb_HWC;
  }
}

}  // namespace

ImageInfo inspect_image(std::span<const uint8_t> bytes, const ImageLimits& limits) {
  const Codec& codec = codec_of(bytes, limits);
  const ImageHeader header = checked_header(codec, bytes, limits);
  if (swaps_sides(header.orientation)) return {codec.format, header.width, header.height};
  return {codec.format, header.height, header.width};
}

Tensor decode_image(std::span<const uint8_t> bytes, const ImageLimits& limits) {
  const Codec& codec = codec_of(bytes, limits);
  const ImageHeader header = checked_header(codec, bytes, limits);
  return turned(codec.decode(bytes, header), header.orientation).permute({2, 0, 1});
}

}  // namespace hanok
