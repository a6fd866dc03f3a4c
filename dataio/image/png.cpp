// PNG through libpng. Ancillary chunks (texts, colour profiles) are skipped unread, so that none of them can claim
// memory; the few that can hold an orientation are read here.
#include <png.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "dataio/image/codec.h"

namespace hanok {
namespace {

constexpr size_t kSignatureBytes = 8, kChunkHeaderBytes = 8, kCrcBytes = 4;
constexpr size_t kMaxTextBytes = 1 << 20;  // decompressed; Pillow's limit

/// libpng reports errors by a function that must not return. It jumps to the last require() call; between the two there
/// are only C frames and lambdas without objects to destroy.
struct PngReader {
  png_structp png = nullptr;
  png_infop info = nullptr;
  Bytes rest;
  std::jmp_buf jump;
  char message[128] = "";

  PngReader() = default;
  explicit PngReader(Bytes bytes);  // delegates, so that the destructor runs when its body throws
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  template <class F>
  bool guarded(F&& call) {
    if (setjmp(jump)) return false;
    call();
    return true;
  }
  template <class F>
  void require(F&& call) {
    HANOK_REQUIRE(guarded(call), kData) << "image: got a damaged PNG file (" << message
                                        << "), expected one that libpng reads; copy or convert the picture";
  }
};

[[noreturn]] void jump_out(png_structp png, png_const_charp text) {
  auto* reader = static_cast<PngReader*>(png_get_error_ptr(png));
  std::strncpy(reader->message, text, sizeof reader->message - 1);
  std::longjmp(reader->jump, 1);
}

void read_bytes(png_structp png, png_bytep out, size_t size) {
  auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
  if (size > reader->rest.size()) png_error(png, "truncated");
  std::memcpy(out, reader->rest.data(), size);
  reader->rest = reader->rest.subspan(size);
}

PngReader::PngReader(Bytes bytes) : PngReader() {
  rest = bytes;
  png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, jump_out, [](png_structp, png_const_charp) {});
  HANOK_REQUIRE(png != nullptr, kData)
      << "image: libpng cannot start (of another version than its header, or no memory)";
  require([this] {
    info = png_create_info_struct(png);
    png_set_read_fn(png, this, read_bytes);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);  // -1: known ancillary chunks, too
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);             // the header has passed ours
    png_read_info(png, info);
  });
}

/// One line of samples (8 bits each, or 16 for grey) -> RGB.
struct LineConverter {
  int channels = 0, bit_depth = 0;
  bool has_table = false;
  std::array<std::array<uint8_t, 3>, 256> table{};  // sample -> RGB, for palettes and grey

  void operator()(const uint8_t* in, uint8_t* out, int64_t width) const {
    for (int64_t x = 0; x < width; ++x, out += 3) {
      if (bit_depth == 16) {
        const uint8_t value = in[2 * x] ? 255 : in[2 * x + 1];  // Pillow clips 16-bit grey instead of scaling it
        out[0] = out[1] = out[2] = value;
      } else if (has_table) {
        std::memcpy(out, table[in[x * channels]].data(), 3);
      } else {
        std::memcpy(out, in + x * channels, 3);
      }
    }
  }
};

/// Sets the transformations and says what is left to do after them.
LineConverter converter_of(PngReader& reader) {
  const int color = png_get_color_type(reader.png, reader.info), depth = png_get_bit_depth(reader.png, reader.info);
  LineConverter convert;
  png_colorp palette = nullptr;
  int num_colors = 0;
  reader.require([&] {
    if (color == PNG_COLOR_TYPE_PALETTE) png_get_PLTE(reader.png, reader.info, &palette, &num_colors);
    if (depth < 8) png_set_packing(reader.png);
    if (depth == 16 && color != PNG_COLOR_TYPE_GRAY) png_set_strip_16(reader.png);
  });
  for (int i = 0; i < 256; ++i) {
    uint8_t grey = static_cast<uint8_t>(i);  // also of palette entries that the file does not define, as in Pillow
    if (color == PNG_COLOR_TYPE_GRAY && depth < 8) grey = static_cast<uint8_t>(i * 255 / ((1 << depth) - 1));
    convert.table[i] = {grey, grey, grey};
    if (i < num_colors) convert.table[i] = {palette[i].red, palette[i].green, palette[i].blue};
  }
  convert.has_table = !(color & PNG_COLOR_MASK_COLOR) || color == PNG_COLOR_TYPE_PALETTE;
  convert.channels = png_get_channels(reader.png, reader.info);
  convert.bit_depth = depth == 16 && color == PNG_COLOR_TYPE_GRAY ? 16 : 8;
  return convert;
}

std::vector<uint8_t> inflated(Bytes compressed) {
  std::vector<uint8_t> out(kMaxTextBytes);
  uLongf size = out.size();
  const int status = uncompress(out.data(), &size, compressed.data(), compressed.size());
  out.resize(status == Z_OK ? size : 0);
  return out;
}

/// The text of a tEXt, zTXt or iTXt chunk.
std::vector<uint8_t> text_of(std::string_view type, Bytes chunk) {
  const auto after_zero = [&chunk] {
    const size_t zero = as_text(chunk).find('\0');
    chunk = zero == std::string_view::npos ? Bytes{} : chunk.subspan(zero + 1);
  };
  after_zero();  // keyword
  bool is_compressed = type == "zTXt";
  if (type == "zTXt") {
    if (chunk.empty()) return {};
    chunk = chunk.subspan(1);  // method
  } else if (type == "iTXt") {
    if (chunk.size() < 2) return {};
    is_compressed = chunk[0] != 0;
    chunk = chunk.subspan(2);  // flag, method
    after_zero();              // language
    after_zero();              // translated keyword
  }
  if (is_compressed) return inflated(chunk);
  return {chunk.begin(), chunk.begin() + std::min(chunk.size(), kMaxTextBytes)};
}

/// ImageMagick's form: three lines of header, then hexadecimal digits.
std::vector<uint8_t> raw_profile(const std::vector<uint8_t>& text) {
  std::vector<uint8_t> out;
  int num_lines = 0, half = -1;
  for (const uint8_t c : text) {
    if (c == '\n') ++num_lines;
    if (num_lines < 3) continue;
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) continue;
    if (half >= 0) out.push_back(static_cast<uint8_t>(half << 4 | digit));
    half = half >= 0 ? -1 : digit;
  }
  return out;
}

struct Chunk {
  std::string_view type;
  Bytes data;
};

/// Also finds files that end inside a chunk behind the pixels, which libpng does not read.
int orientation_of(Bytes bytes) {
  Chunk exif, profile, xmp;  // the last ones count; each is decompressed once at most
  Bytes rest = bytes.subspan(kSignatureBytes);
  while (rest.size() >= kChunkHeaderBytes) {
    const size_t size = read_u32_big(rest.data()), left = rest.size() - kChunkHeaderBytes;
    HANOK_REQUIRE(size <= left, kData) << "image: got a truncated PNG file with " << left
                                       << " bytes in its last chunk, expected " << size << "; copy the file again";
    const Chunk chunk{as_text(rest.subspan(4, 4)), rest.subspan(kChunkHeaderBytes, size)};
    const bool is_text = chunk.type == "tEXt" || chunk.type == "zTXt" || chunk.type == "iTXt";
    if (chunk.type == "IEND") break;
    if (chunk.type == "eXIf") exif = chunk;
    if (is_text && starts_with(chunk.data, {"Raw profile type exif\0", 22})) profile = chunk;
    if (is_text && starts_with(chunk.data, {"XML:com.adobe.xmp\0", 18})) xmp = chunk;
    rest = rest.subspan(std::min(rest.size(), kChunkHeaderBytes + size + kCrcBytes));
  }
  std::optional<int> orientation = exif_orientation(exif.data);
  if (exif.data.empty() && !profile.data.empty()) {
    orientation = exif_orientation(raw_profile(text_of(profile.type, profile.data)));
  }
  if (!orientation && !xmp.data.empty()) orientation = xmp_orientation(as_text(text_of(xmp.type, xmp.data)));
  return orientation.value_or(1);
}

}  // namespace

ImageHeader png_header(Bytes bytes) {
  HANOK_REQUIRE(bytes.size() >= kSignatureBytes + 16 && as_text(bytes.subspan(12, 4)) == "IHDR", kData)
      << "image: got a PNG file without a header, expected chunk IHDR first; copy the file again";
  const int64_t width = read_u32_big(bytes.data() + 16), height = read_u32_big(bytes.data() + 20);
  HANOK_REQUIRE(width <= INT32_MAX && height <= INT32_MAX, kData)
      << "image: got " << width << " x " << height << " pixels, expected sides below 2147483648; PNG header";
  return {height, width, orientation_of(bytes)};
}

Tensor decode_png(Bytes bytes, const ImageHeader& header) {
  PngReader reader(bytes);
  const LineConverter convert = converter_of(reader);
  int num_passes = 1;
  reader.require([&] {
    num_passes = png_set_interlace_handling(reader.png);
    png_read_update_info(reader.png, reader.info);
  });
  const size_t line_bytes = png_get_rowbytes(reader.png, reader.info);
  const int64_t num_lines = num_passes == 1 ? 1 : header.height;  // an interlaced picture is complete only at its end
  std::vector<uint8_t> lines(line_bytes * num_lines);
  Tensor rgb_HWC = at::empty({header.height, header.width, 3}, at::kByte);
  auto* out = rgb_HWC.data_ptr<uint8_t>();
  for (int pass = 0; pass < num_passes; ++pass) {
    for (int64_t y = 0; y < header.height; ++y) {
      uint8_t* line = lines.data() + (num_lines == 1 ? 0 : y * line_bytes);
      reader.require([&reader, line] { png_read_row(reader.png, line, nullptr); });
      if (pass == num_passes - 1) convert(line, out + y * header.width * 3, header.width);
    }
  }
  return rgb_HWC;
}

}  // namespace hanok
