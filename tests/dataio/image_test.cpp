#include "dataio/image.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <random>
#include <thread>

#include "base/error.h"
#include "dataio/image/codec.h"
#include "tests/dataio/picture_files.h"

namespace hanok {
namespace {

using pictures::File;

/// Rows of "rrggbb rrggbb": a picture that can be read.
std::string shown(const Tensor& rgb_CHW) {
  const Tensor rgb = rgb_CHW.permute({1, 2, 0}).contiguous();
  const auto* p = rgb.data_ptr<uint8_t>();
  std::string out;
  for (int64_t y = 0; y < rgb.size(0); ++y) {
    for (int64_t x = 0; x < rgb.size(1); ++x, p += 3) {
      char text[8];
      std::snprintf(text, sizeof text, "%02x%02x%02x", p[0], p[1], p[2]);
      out += (x ? " " : y ? "/" : "") + std::string(text);
    }
  }
  return out;
}

std::string message_of(const File& file, const ImageLimits& limits = {}) {
  try {
    decode_image(file, limits);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
    return error.what();
  }
  return "no error";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

std::vector<uint8_t> noise(size_t size) {
  std::mt19937 random(7);
  std::vector<uint8_t> out(size);
  for (uint8_t& value : out) value = static_cast<uint8_t>(random());
  return out;
}

/// One file of each format, 40 x 30 with noise.
std::vector<File> one_of_each() {
  const std::vector<uint8_t> rgb = noise(40 * 30 * 3);
  std::vector<std::string> lines;
  for (int y = 0; y < 30; ++y) lines.emplace_back(rgb.begin() + y * 120, rgb.begin() + (y + 1) * 120);
  return {pictures::jpeg(40, 30, rgb),
          pictures::jpeg(40, 30, rgb, {.progressive = true}),
          pictures::png(40, 30, 2, 8, lines),
          pictures::webp(40, 30, noise(40 * 30 * 4))};
}

/// Peak resident memory in MiB since the last call of forget_peak().
void forget_peak() {
  std::ofstream("/proc/self/clear_refs") << "5";
}
double peak_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6)) / 1024;
  }
  return 0;
}

TEST(Image, PngOfEveryKindBecomesRgb) {
  const auto decoded = [](const File& file) { return shown(decode_image(file, {})); };
  using pictures::png;
  EXPECT_EQ(decoded(png(3, 1, 0, 1, {"\xa0"})), "ffffff 000000 ffffff");
  EXPECT_EQ(decoded(png(4, 1, 0, 2, {"\x1b"})), "000000 555555 aaaaaa ffffff");
  EXPECT_EQ(decoded(png(2, 1, 0, 4, {"\x5f"})), "555555 ffffff");
  EXPECT_EQ(decoded(png(2, 1, 0, 8, {"\x07\xfe"})), "070707 fefefe");
  // Clipped, not scaled: what transformers sees through PIL.
  EXPECT_EQ(decoded(png(3, 1, 0, 16, {std::string("\0\x07\x01\0\xff\xff", 6)})), "070707 ffffff ffffff");
  EXPECT_EQ(decoded(png(1, 2, 2, 8, {"\x01\x02\x03", "\x04\x05\x06"})), "010203/040506");
  EXPECT_EQ(decoded(png(1, 1, 2, 16, {"\x01\xff\x02\xff\x03\xff"})), "010203");
  // Alpha is dropped, whatever it says.
  EXPECT_EQ(decoded(png(1, 1, 6, 8, {std::string("\x01\x02\x03\0", 4)})), "010203");
  EXPECT_EQ(decoded(png(2, 1, 4, 8, {std::string("\x09\0\x0a\xff", 4)})), "090909 0a0a0a");
  // A palette of two; the third colour is not defined.
  const std::string palette = pictures::png_chunk("PLTE", "\x10\x20\x30\x40\x50\x60");
  const std::string transparency = pictures::png_chunk("tRNS", std::string(2, '\0'));
  EXPECT_EQ(decoded(png(3, 1, 3, 8, {std::string("\x01\0\x02", 3)}, palette + transparency)), "405060 102030 020202");
  EXPECT_EQ(decoded(png(2, 1, 3, 1, {"\x40"}, palette)), "102030 405060");
}

TEST(Image, EightOrientationsAreTurnedUpright) {
  // Stored as 1 2 / 3 4 / 5 6; EXIF says where its first line and first column belong.
  const std::vector<std::string> lines = {"\x01\x02", "\x03\x04", "\x05\x06"};
  const std::vector<std::string> expected = {
      "12/34/56", "21/43/65", "65/43/21", "56/34/12", "135/246", "531/642", "642/531", "246/135"};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (const bool is_big_endian : {false, true}) {
      const std::string block = pictures::exif(orientation, is_big_endian);
      const File file = pictures::png(2, 3, 0, 8, lines, pictures::png_chunk("eXIf", block));
      const Tensor rgb = decode_image(file, {});
      std::string digits;
      for (int64_t y = 0; y < rgb.size(1); ++y) {
        if (y) digits += '/';
        for (int64_t x = 0; x < rgb.size(2); ++x) digits += std::to_string(rgb[0][y][x].item<int>());
      }
      EXPECT_EQ(digits, expected[orientation - 1]) << orientation;
      const ImageInfo info = inspect_image(file, {});
      EXPECT_EQ(info.height, rgb.size(1));
      EXPECT_EQ(info.width, rgb.size(2));
    }
  }
}

TEST(Image, JpegOrientationComesFromExifOrElseFromXmp) {
  const auto sides = [](const std::string& app1) {
    const ImageInfo info = inspect_image(pictures::jpeg(20, 10, noise(600), {.app1 = app1}), {});
    return concat(info.width, "x", info.height);
  };
  const std::string xmp = std::string("http://ns.adobe.com/xap/1.0/\0", 29) + "<a tiff:Orientation=\"6\"/>";
  EXPECT_EQ(sides(""), "20x10");
  EXPECT_EQ(sides(std::string("Exif\0\0", 6) + pictures::exif(6)), "10x20");
  EXPECT_EQ(sides(std::string("Exif\0\0", 6) + pictures::exif(9)), "20x10");
  EXPECT_EQ(sides(xmp), "10x20");
}

TEST(Image, DamagedExifTurnsNothingAndReadsNothingOutside) {
  const std::string whole = pictures::exif(6);
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<uint8_t> cut(whole.begin(), whole.begin() + size);  // exact size: a sanitizer sees overreads
    EXPECT_EQ(exif_orientation(cut).value_or(0), size < 22 ? 0 : 6);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::vector<uint8_t> block(whole.begin(), whole.end());
    for (int k = 0; k < 3; ++k) block[random() % block.size()] = static_cast<uint8_t>(random());
    exif_orientation(block);
  }
}

TEST(Image, JpegOfEveryKindBecomesRgb) {
  // Flat colours survive compression: within two levels at quality 100.
  const auto flat = [](const std::vector<uint8_t>& color, bool progressive) {
    std::vector<uint8_t> pixels;
    for (int i = 0; i < 17 * 9; ++i) pixels.insert(pixels.end(), color.begin(), color.end());
    const pictures::JpegOptions options{.channels = static_cast<int>(color.size()), .progressive = progressive};
    return decode_image(pictures::jpeg(17, 9, pixels, options), {}).to(at::kInt);
  };
  for (const bool progressive : {false, true}) {
    const auto expect_color = [&](const std::vector<uint8_t>& stored, const std::vector<int>& rgb) {
      const Tensor expected = at::tensor(rgb).view({3, 1, 1}).expand({3, 9, 17});
      EXPECT_LE((flat(stored, progressive) - expected).abs().max().item<int>(), 2) << concat(stored);
    };
    expect_color({100}, {100, 100, 100});
    expect_color({200, 30, 60}, {200, 30, 60});
    // Inverted CMYK: 255 is no ink. Half of black over full yellow.
    expect_color({255, 255, 0, 128}, {128, 128, 0});
    expect_color({255, 255, 255, 255}, {255, 255, 255});
  }
}

TEST(Image, FirstFrameOfAnAnimatedWebpLiesOnItsCanvas) {
  const File still = pictures::webp(2, 1, {1, 2, 3, 0, 4, 5, 6, 255});
  EXPECT_EQ(shown(decode_image(still, {})), "010203 040506");
  const File animated = pictures::animated_webp(5, 3, 2, 0, 2, 1, still);
  EXPECT_EQ(shown(decode_image(animated, {})),
            "000000 000000 010203 040506 000000/000000 000000 000000 000000 000000/000000 000000 000000 000000 000000");
  expect_contains(message_of(pictures::animated_webp(3, 3, 2, 0, 2, 1, still)), "beyond its canvas");
}

TEST(Image, TruncatedFilesAreRefusedAtEveryLength) {
  for (const File& file : one_of_each()) {
    // The last bytes of a PNG (its end chunk) and of a JPEG may be missing without loss.
    for (size_t size = 0; size + 20 < file.size(); size += 1 + size / 20) {
      EXPECT_NE(message_of(File(file.begin(), file.begin() + size)), "no error") << size << " of " << file.size();
    }
  }
  const File jpeg = one_of_each()[0];
  expect_contains(message_of(File(jpeg.begin(), jpeg.end() - 400)), "truncated JPEG");
  File webp = one_of_each()[3];
  webp[4] += 2;  // the container claims a chunk behind the pixels
  expect_contains(message_of(webp), "truncated");
}

TEST(Image, LimitsHoldBeforeAnythingIsDecoded) {
  const File huge = pictures::png(60000, 60000, 2, 8, {"abc"});
  forget_peak();
  const double before = peak_mib();
  expect_contains(message_of(huge), "60000 x 60000 = 3600000000 pixels, expected at most 67108864");
  expect_contains(message_of(huge), "data.max_image_pixels");
  EXPECT_LT(peak_mib(), before + 8);
  EXPECT_THROW(inspect_image(huge, {}), Error);
  EXPECT_NE(message_of(one_of_each()[0], {.max_pixels = 40 * 30 - 1}), "no error");
  EXPECT_EQ(message_of(one_of_each()[0], {.max_pixels = 40 * 30}), "no error");
  expect_contains(message_of(one_of_each()[3], {.max_encoded_bytes = 100}), "bytes, expected at most 100");
}

TEST(Image, BombsInTextsAndProfilesAreNotUnpacked) {
  const std::string zeros = pictures::zlib_compressed(std::string(300 << 20, '\0'));
  const std::string chunks = pictures::png_chunk("iTXt", std::string("XML:com.adobe.xmp\0\1\0\0\0", 22) + zeros) +
                             pictures::png_chunk("zTXt", std::string("Raw profile type exif\0\0", 23) + zeros) +
                             pictures::png_chunk("iCCP", std::string("profile\0\0", 9) + zeros);
  const File file = pictures::png(1, 1, 0, 8, {"\x05"}, chunks);
  forget_peak();
  const double before = peak_mib();
  EXPECT_EQ(shown(decode_image(file, {})), "050505");
  EXPECT_LT(peak_mib(), before + 8);
}

TEST(Image, MoreScansThanEncodersWriteAreRefused) {
  const File file = pictures::jpeg(40, 30, noise(3600), {.progressive = true});
  // The last scan again and again: each costs a pass over the picture.
  size_t scan = file.size() - 2;
  while (!(file[scan] == 0xff && file[scan + 1] == 0xda)) --scan;
  File many(file.begin(), file.end() - 2);
  for (int i = 0; i < 2000; ++i) many.insert(many.end(), file.begin() + scan, file.end() - 2);
  many.insert(many.end(), file.end() - 2, file.end());
  EXPECT_EQ(message_of(file), "no error");
  expect_contains(message_of(many), "more than 100 scans");
}

TEST(Image, AnotherFormatIsNamedByItsFirstBytes) {
  expect_contains(message_of({'G', 'I', 'F', '8', '9', 'a', 0, 1, 2}), "begins with bytes '4749463839610001'");
  expect_contains(message_of({}), "expected JPEG, PNG or WebP");
}

TEST(Image, DamagedFilesAreDecodedOrRefusedNeverFatal) {
  std::mt19937 random(3);
  int num_refused = 0;
  for (const File& original : one_of_each()) {
    for (int i = 0; i < 400; ++i) {
      File file = original;
      for (int k = 0; k < 1 + i % 8; ++k) file[random() % file.size()] = static_cast<uint8_t>(random());
      num_refused += message_of(file, {.max_pixels = 1 << 20}) != "no error";
    }
  }
  EXPECT_GT(num_refused, 100);
}

TEST(Image, ThreadsDecodeTheSame) {
  const std::vector<File> files = one_of_each();
  std::vector<Tensor> expected;
  for (const File& file : files) expected.push_back(decode_image(file, {}));
  std::vector<std::thread> threads;
  std::atomic<int> num_different = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        num_different += !decode_image(files[i % files.size()], {}).equal(expected[i % files.size()]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_different, 0);
}

}  // namespace
}  // namespace hanok
