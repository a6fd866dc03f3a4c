// Pictures, opened as the loader opens them.
#include <zlib.h>

#include <algorithm>

#include "base/error.h"
#include "dataio/image.h"
#include "tests/dataio/picture_files.h"
#include "tests/fuzz/fuzz.h"

namespace hanok::fuzz {
namespace {

using pictures::png_chunk;

constexpr ImageLimits kLimits{.max_pixels = 1 << 14, .max_encoded_bytes = 1 << 20};

std::string text_of(const pictures::File& file) {
  return {file.begin(), file.end()};
}

uint32_t big(const std::string& text, size_t at, size_t width) {
  uint32_t value = 0;
  for (size_t i = at; i < at + width && i < text.size(); ++i) value = value << 8 | static_cast<uint8_t>(text[i]);
  return value;
}
std::string big_text(uint32_t value, int width) {
  std::string out;
  for (int i = width - 1; i >= 0; --i) out += static_cast<char>(value >> (8 * i));
  return out;
}
std::string little_text(uint32_t value, int width) {
  std::string out = big_text(value, width);
  std::reverse(out.begin(), out.end());
  return out;
}

/// Bound: 20 bytes a pixel, edges rounded up to a JPEG's largest block (32), the file twice (metadata in pieces), and
/// 4 MiB: compressed texts (1 MiB and their hexadecimal digits), tables and line buffers of the decoders.
void run_image(const std::string& input, Budget& budget) {
  const std::span bytes(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  const size_t fixed = (size_t{4} << 20) + 2 * input.size();
  budget.begin_phase("picture header", fixed);
  const ImageInfo info = inspect_image(bytes, kLimits);
  budget.begin_phase("picture", fixed + 20 * static_cast<size_t>((info.height + 32) * (info.width + 32)));
  const Tensor rgb_CHW = decode_image(bytes, kLimits);
  if (rgb_CHW.sizes() != at::IntArrayRef({3, info.height, info.width})) throw std::logic_error("picture: another size");
  rgb_CHW.sum().item<int64_t>();  // every byte can be read
}

// PNG: chunks with their checksums put right, pixels changed before they are compressed.

struct PngChunk {
  std::string type, data;
};
constexpr size_t kPngSignature = 8, kPngOverhead = 12;

std::vector<PngChunk> png_chunks(const std::string& input) {
  std::vector<PngChunk> chunks;
  for (size_t at = kPngSignature; at + 8 <= input.size();) {
    const size_t size = std::min<size_t>(big(input, at, 4), input.size() - at - 8);
    chunks.push_back({input.substr(at + 4, 4), input.substr(at + 8, size)});
    at += kPngOverhead + size;
  }
  return chunks;
}

std::string inflated(const std::string& data) {
  std::string out(1 << 16, '\0');
  uLongf size = out.size();
  uncompress(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(data.data()), data.size());
  out.resize(std::min<size_t>(size, out.size()));
  return out;
}

std::string odd_png_text(const std::string& other, Random& random) {
  std::string exif = pictures::exif(static_cast<int>(random.below(10)), random.one_in(2));
  for (size_t n = random.few(4); n > 1; --n) mutate_bytes(exif, other, random);
  const std::string xmp =
      "<x tiff:Orientation" + std::string(random.one_in(2) ? "=\"" : ">") + static_cast<char>('0' + random.below(12));
  std::string profile = "\nexif\n  20\n";
  for (const char c : exif) {
    profile += "0123456789abcdef"[static_cast<uint8_t>(c) >> 4];
    profile += "0123456789abcdef"[c & 15];
  }
  const std::string raw("Raw profile type exif\0", 22), adobe("XML:com.adobe.xmp\0", 18);
  switch (random.below(6)) {
    case 0: return png_chunk("eXIf", exif);
    case 1: return png_chunk("tEXt", raw + profile);
    case 2:
      return png_chunk("zTXt",
                       raw + '\0' + pictures::zlib_compressed(random.one_in(8) ? std::string(5 << 20, '0') : profile));
    case 3: return png_chunk("iTXt", adobe + std::string(2, '\0') + "en" + '\0' + '\0' + xmp);
    case 4: return png_chunk("iTXt", adobe + '\1' + '\0' + '\0' + '\0' + pictures::zlib_compressed(xmp));
    default: return png_chunk(random.one_in(2) ? "tRNS" : "PLTE", other.substr(0, random.below(40)));
  }
}

void mutate_png_chunk(std::vector<PngChunk>& chunks, size_t at, const std::string& other, Random& random) {
  PngChunk& chunk = chunks[at];
  if (chunk.type == "IHDR" && chunk.data.size() >= 13 && !random.one_in(6)) {
    switch (random.below(4)) {
      case 0:
        chunk.data.replace(
            4 * random.below(2),
            4,
            big_text(random.one_in(4) ? static_cast<uint32_t>(random.next()) : static_cast<uint32_t>(random.below(130)),
                     4));
        break;
      case 1: chunk.data[8] = static_cast<char>(1 << random.below(6)); break;
      case 2: chunk.data[9] = static_cast<char>(random.below(8)); break;
      default: chunk.data[12] ^= 1;
    }
  } else if (chunk.type == "IDAT" && !random.one_in(4)) {
    std::string raw = inflated(chunk.data);
    for (size_t n = random.few(4); n > 0; --n) mutate_bytes(raw, other, random);
    chunk.data = pictures::zlib_compressed(raw);
  } else if (random.one_in(5)) {
    const auto letter = static_cast<size_t>(random.below(4));
    if (letter < chunk.type.size())
      chunk.type[letter] = static_cast<char>(chunk.type[letter] ^ (random.one_in(2) ? 0x20 : 1));
  } else {
    mutate_bytes(chunk.data, other, random);
  }
}

void mutate_png(std::string& input, const std::string& other, Random& random) {
  std::vector<PngChunk> chunks = png_chunks(input);
  if (chunks.empty() || random.one_in(10)) return mutate_bytes(input, other, random);
  const size_t at = random.below(chunks.size());
  std::string before;
  size_t before_at = chunks.size();
  switch (random.below(12)) {
    case 0: chunks.erase(chunks.begin() + static_cast<std::ptrdiff_t>(at)); break;
    case 1: chunks.insert(chunks.begin() + static_cast<std::ptrdiff_t>(at), random.few(8), PngChunk(chunks[at])); break;
    case 2: std::swap(chunks[at], chunks[random.below(chunks.size())]); break;
    case 3: {
      const auto theirs = png_chunks(other);
      if (!theirs.empty()) chunks[at] = random.pick(theirs);
      break;
    }
    case 4:
    case 5:
      before = odd_png_text(other, random);
      before_at = at;
      break;
    case 6: {  // one stream of pixels over two chunks
      const size_t cut = random.below(chunks[at].data.size() + 1);
      PngChunk rest{chunks[at].type, chunks[at].data.substr(cut)};
      chunks[at].data.resize(cut);
      chunks.insert(chunks.begin() + static_cast<std::ptrdiff_t>(at) + 1, std::move(rest));
      break;
    }
    default: mutate_png_chunk(chunks, at, other, random);
  }
  input.resize(kPngSignature);
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (i == before_at) input += before;
    input += png_chunk(chunks[i].type, chunks[i].data);
  }
}

/// Lines of random samples.
std::string png_picture(
    uint32_t width, uint32_t height, int color, int depth, const std::string& before = "", bool interlaced = false) {
  const int channels = color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 1;
  Random random(width * 7 + static_cast<uint32_t>(color) + static_cast<uint32_t>(depth));
  std::vector<std::string> lines(height);
  for (std::string& line : lines) {
    for (uint32_t i = 0; i < (width * static_cast<uint32_t>(channels * depth) + 7) / 8; ++i)
      line += static_cast<char>(random.next());
  }
  std::string file = text_of(pictures::png(width, height, color, depth, lines, before));
  if (interlaced) {  // the stream is then too short or too long: a seed all the same
    std::vector<PngChunk> chunks = png_chunks(file);
    chunks[0].data[12] = 1;
    file.resize(kPngSignature);
    for (const PngChunk& chunk : chunks) file += png_chunk(chunk.type, chunk.data);
  }
  return file;
}

std::vector<std::string> png_seeds() {
  const std::string palette = png_chunk("PLTE", std::string("\0\0\0\xff\0\0\0\xff\0\0\0\xff", 12));
  return {png_picture(5, 4, 0, 1),
          png_picture(4, 3, 0, 16),
          png_picture(3, 5, 2, 8),
          png_picture(3, 2, 2, 16),
          png_picture(7, 3, 3, 2, palette),
          png_picture(3, 3, 4, 8, png_chunk("eXIf", pictures::exif(6))),
          png_picture(4, 4, 6, 8, png_chunk("tRNS", "ab")),
          png_picture(1, 1, 6, 16),
          png_picture(9, 9, 0, 8, "", true),
          read_source("tests/data/digits/images/0298.png")};
}

// JPEG: segments with their lengths put right.

struct JpegSegment {
  std::string marker;  // two bytes
  std::string data;    // without its length; of a scan: header and entropy-coded bytes in `coded`
  std::string coded;
};

std::vector<JpegSegment> jpeg_segments(const std::string& input) {
  std::vector<JpegSegment> out;
  for (size_t at = 2; at + 4 <= input.size() && input[at] == '\xff';) {
    const size_t size = std::max<size_t>(2, big(input, at + 2, 2)), end = std::min(input.size(), at + 2 + size);
    JpegSegment segment{input.substr(at, 2), input.substr(at + 4, end - std::min(end, at + 4)), ""};
    at = end;
    if (segment.marker[1] == '\xda') {
      size_t next = at;
      while (next + 1 < input.size() &&
             !(input[next] == '\xff' && input[next + 1] != 0 && (input[next + 1] & '\xf8') != '\xd0'))
        ++next;
      if (next + 1 >= input.size()) next = input.size();
      segment.coded = input.substr(at, next - at);
      at = next;
    }
    out.push_back(std::move(segment));
  }
  return out;
}

void mutate_jpeg_segment(JpegSegment& segment, const std::string& other, Random& random) {
  const auto marker = static_cast<uint8_t>(segment.marker[1]);
  const bool is_frame = marker >= 0xc0 && marker <= 0xc2;
  if (is_frame && segment.data.size() >= 6 && !random.one_in(3)) {
    switch (random.below(4)) {
      case 0:
        segment.data.replace(1 + 2 * random.below(2),
                             2,
                             big_text(static_cast<uint32_t>(random.below(random.one_in(8) ? 65536 : 130)), 2));
        break;
      case 1:
        segment.data[random.below(segment.data.size())] = static_cast<char>(random.below(5) << 4 | random.below(5));
        break;
      case 2: segment.marker[1] = static_cast<char>(0xc0 + random.below(16)); break;
      default: mutate_bytes(segment.data, other, random);
    }
  } else if (!segment.coded.empty() && random.one_in(2)) {
    if (random.one_in(4)) {
      segment.coded.insert(random.below(segment.coded.size()), {'\xff', static_cast<char>(0xd0 + random.below(10))});
    } else {
      mutate_bytes(segment.coded, other, random);
    }
  } else {
    mutate_bytes(segment.data, other, random);
  }
}

JpegSegment odd_jpeg_segment(const std::string& other, Random& random) {
  std::string exif = pictures::exif(static_cast<int>(random.below(10)), random.one_in(2));
  if (random.one_in(2)) mutate_bytes(exif, other, random);
  switch (random.below(5)) {
    case 0: return {"\xff\xe1", std::string("Exif\0\0", 6) + exif, ""};
    case 1: return {"\xff\xe1", std::string("http://ns.adobe.com/xap/1.0/\0", 29) + "tiff:Orientation=\"6", ""};
    case 2: return {"\xff\xee", std::string("Adobe\0\x64\0\0\0\0", 11) + static_cast<char>(random.below(3)), ""};
    case 3: return {"\xff\xdd", big_text(static_cast<uint32_t>(random.below(20)), 2), ""};
    default: return {{'\xff', static_cast<char>(random.next() | 0xc0)}, other.substr(0, random.below(64)), ""};
  }
}

void mutate_jpeg(std::string& input, const std::string& other, Random& random) {
  std::vector<JpegSegment> segments = jpeg_segments(input);
  if (segments.empty() || random.one_in(10)) return mutate_bytes(input, other, random);
  const size_t at = random.below(segments.size());
  const auto place = segments.begin() + static_cast<std::ptrdiff_t>(at);
  switch (random.below(10)) {
    case 0: segments.erase(place); break;
    case 1: segments.insert(place, random.one_in(30) ? 150 : random.few(6), JpegSegment(segments[at])); break;
    case 2: std::swap(segments[at], segments[random.below(segments.size())]); break;
    case 3: {
      const auto theirs = jpeg_segments(other);
      if (!theirs.empty()) segments[at] = random.pick(theirs);
      break;
    }
    case 4: {
      const JpegSegment odd = odd_jpeg_segment(other, random);
      segments.insert(place, odd);
      break;
    }
    default: mutate_jpeg_segment(segments[at], other, random);
  }
  input = "\xff\xd8";
  for (const JpegSegment& s : segments)
    input += s.marker + big_text(static_cast<uint32_t>(s.data.size() + 2), 2) + s.data + s.coded;
  if (!random.one_in(10)) input += "\xff\xd9";
}

std::vector<std::string> jpeg_seeds() {
  const auto picture = [](int width, int height, const pictures::JpegOptions& options) {
    std::vector<uint8_t> pixels(static_cast<size_t>(width) * height * options.channels);
    Random random(pixels.size());
    for (uint8_t& p : pixels) p = static_cast<uint8_t>(random.next() & 0x7f);
    return text_of(pictures::jpeg(width, height, pixels, options));
  };
  const std::string app1 = std::string("Exif\0\0", 6) + pictures::exif(5);
  return {picture(9, 7, {}),
          picture(17, 5, {.channels = 1, .app1 = app1}),
          picture(8, 8, {.channels = 4}),
          picture(12, 20, {.channels = 3, .progressive = true}),
          picture(3, 33, {.channels = 1, .progressive = true})};
}

// WebP: chunks of the RIFF container with their sizes put right.

struct RiffChunk {
  std::string type, data;
};

std::vector<RiffChunk> riff_chunks(const std::string& input, size_t at) {
  std::vector<RiffChunk> out;
  while (at + 8 <= input.size()) {
    std::string size_text = input.substr(at + 4, 4);
    std::reverse(size_text.begin(), size_text.end());
    const size_t size = std::min<size_t>(big(size_text, 0, 4), input.size() - at - 8);
    out.push_back({input.substr(at, 4), input.substr(at + 8, size)});
    at += 8 + size + size % 2;
  }
  return out;
}

std::string riff_text(const std::vector<RiffChunk>& chunks) {
  std::string out;
  for (const RiffChunk& chunk : chunks) {
    out += chunk.type + little_text(static_cast<uint32_t>(chunk.data.size()), 4) + chunk.data;
    if (chunk.data.size() % 2) out += '\0';
  }
  return out;
}

void mutate_webp(std::string& input, const std::string& other, Random& random) {
  constexpr size_t kFrameHeader = 16;
  std::vector<RiffChunk> chunks = riff_chunks(input, 12);
  if (chunks.empty() || random.one_in(8)) return mutate_bytes(input, other, random);
  const size_t at = random.below(chunks.size());
  const auto place = chunks.begin() + static_cast<std::ptrdiff_t>(at);
  switch (random.below(9)) {
    case 0: chunks.erase(place); break;
    case 1: chunks.insert(place, random.few(4), RiffChunk(chunks[at])); break;
    case 2: std::swap(chunks[at], chunks[random.below(chunks.size())]); break;
    case 3: {
      const auto theirs = riff_chunks(other, 12);
      if (!theirs.empty()) chunks.insert(place, random.pick(theirs));
      break;
    }
    case 4:
      chunks.insert(place,
                    {random.one_in(2) ? "EXIF" : "XMP ", random.one_in(2) ? pictures::exif(7) : "tiff:Orientation>8"});
      break;
    case 5:
      if (chunks[at].type == "ANMF" && chunks[at].data.size() > kFrameHeader) {  // a chunk of the frame
        std::vector<RiffChunk> inner = riff_chunks(chunks[at].data, kFrameHeader);
        if (!inner.empty()) mutate_bytes(inner[random.below(inner.size())].data, other, random);
        chunks[at].data = chunks[at].data.substr(0, kFrameHeader) + riff_text(inner);
        break;
      }
      [[fallthrough]];
    case 6:
      if (!chunks[at].data.empty()) {  // the headers of the bitstreams are in the first bytes
        std::string head = chunks[at].data.substr(0, 24);
        mutate_bytes(head, other, random);
        chunks[at].data.replace(0, 24, head);
        break;
      }
      [[fallthrough]];
    default: mutate_bytes(chunks[at].data, other, random);
  }
  const std::string body = "WEBP" + riff_text(chunks);
  input = "RIFF" + little_text(static_cast<uint32_t>(body.size()), 4) + body;
}

std::vector<std::string> webp_seeds() {
  std::vector<uint8_t> rgba(4 * 6 * 5);
  Random random(1);
  for (uint8_t& value : rgba) value = static_cast<uint8_t>(random.next());
  const pictures::File still = pictures::webp(6, 5, rgba);
  const std::string bare = text_of(still);
  std::vector<RiffChunk> chunks = riff_chunks(bare, 12);
  chunks.insert(chunks.begin(), {"VP8X", '\x0c' + std::string(3, '\0') + little_text(5, 3) + little_text(4, 3)});
  chunks.push_back({"EXIF", pictures::exif(6)});
  const std::string body = "WEBP" + riff_text(chunks);
  // Lossy, 16 x 16, one grey.
  std::vector<uint8_t> grey(3 * 16 * 16, 90);
  return {bare,
          "RIFF" + little_text(static_cast<uint32_t>(body.size()), 4) + body,
          text_of(pictures::animated_webp(20, 16, 4, 6, 6, 5, still)),
          text_of(pictures::lossy_webp(16, 16, grey))};
}

}  // namespace

const std::vector<Target> kImageTargets = {
    {"png", 8192, png_seeds, mutate_png, run_image},
    {"jpeg", 8192, jpeg_seeds, mutate_jpeg, run_image},
    {"webp", 4096, webp_seeds, mutate_webp, run_image},
};

}  // namespace hanok::fuzz
