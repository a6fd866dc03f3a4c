// Mutations of bytes, words and lines; the files that targets read.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tests/fuzz/fuzz.h"

namespace hanok::fuzz {
namespace {

constexpr uint64_t kOddNumbers[] = {
    0,          1,          2,           7,          8,          16,         31,
    32,         63,         64,          100,        127,        128,        255,
    256,        1000,       4095,        4096,       32767,      32768,      65535,
    65536,      99'999'999, 100'000'001, 2147483646, 2147483647, 2147483648, 4294967295,
    4294967296, 1ull << 40, 1ull << 53,  1ull << 61, 1ull << 62, ~0ull >> 1, (~0ull >> 1) + 1,
    ~0ull - 7,  ~0ull};

uint64_t odd_value(Random& random) {
  uint64_t value = kOddNumbers[random.below(std::size(kOddNumbers))];
  if (random.one_in(4)) value += random.below(5) - 2;
  return value;
}

/// [begin, end) of at most `most` bytes.
std::pair<size_t, size_t> stretch(const std::string& text, size_t most, Random& random) {
  if (text.empty()) return {0, 0};
  const size_t begin = random.below(text.size());
  const size_t size = random.one_in(4) ? random.below(most) + 1 : random.few(most);
  return {begin, std::min(text.size(), begin + size)};
}

}  // namespace

std::string odd_number(Random& random) {
  static const std::vector<std::string> kTexts = {"-0",
                                                  "-1",
                                                  "1.5",
                                                  "0.1",
                                                  "1e999",
                                                  "-1e999",
                                                  "1e-400",
                                                  "1E5",
                                                  "0e0",
                                                  "-9223372036854775808",
                                                  "-9223372036854775809",
                                                  "18446744073709551616",
                                                  "1" + std::string(400, '0'),
                                                  "0." + std::string(400, '0') + "1",
                                                  "1e18",
                                                  "NaN",
                                                  "01",
                                                  "+1"};
  return random.one_in(3) ? random.pick(kTexts) : std::to_string(odd_value(random));
}

void mutate_bytes(std::string& input, const std::string& other, Random& random) {
  if (input.empty()) input = other.substr(0, 16) + '\0';
  const size_t at = random.below(input.size());
  switch (random.below(10)) {
    case 0: input[at] ^= static_cast<char>(1 << random.below(8)); break;
    case 1: input[at] = static_cast<char>(random.next()); break;
    case 2: input[at] = static_cast<char>(input[at] + static_cast<char>(random.below(9)) - 4); break;
    case 3: {
      uint64_t value = odd_value(random);
      const size_t width = size_t{1} << random.below(4);
      if (random.one_in(2)) value = __builtin_bswap64(value) >> (64 - 8 * width);
      if (at + width <= input.size()) std::memcpy(input.data() + at, &value, width);
      break;
    }
    case 4: {
      const auto [begin, end] = stretch(input, 64, random);
      input.erase(begin, end - begin);
      break;
    }
    case 5: {
      const auto [begin, end] = stretch(input, 64, random);
      input.insert(at, input.substr(begin, end - begin));
      break;
    }
    case 6: {
      const auto [begin, end] = stretch(other, 256, random);
      input.insert(at, other, begin, end - begin);
      break;
    }
    case 7: {
      const auto [begin, end] = stretch(other, 256, random);
      input.replace(at, std::min(input.size() - at, end - begin), other, begin, end - begin);
      break;
    }
    case 8: input.insert(at, random.few(64), static_cast<char>(random.next())); break;
    default:
      if (random.one_in(4)) {
        input.resize(at);
      } else {
        const auto [begin, end] = stretch(input, 32, random);
        for (size_t i = begin; i < end; ++i) input[i] = static_cast<char>(random.next());
      }
  }
}

void mutate_words(std::string& input, const std::vector<std::string>& words, Random& random) {
  const std::string& word = random.pick(words);
  const size_t at = random.below(input.size() + 1);
  if (random.one_in(3)) {
    input.replace(at, std::min(word.size(), input.size() - at), word);
  } else {
    input.insert(at, word);
  }
}

void mutate_lines(std::string& input, const std::string& other, Random& random) {
  const auto line_at = [&](const std::string& text) -> std::pair<size_t, size_t> {
    if (text.empty()) return {0, 0};
    const size_t at = random.below(text.size()), before = text.rfind('\n', at == 0 ? 0 : at - 1);
    const size_t begin = before == std::string::npos ? 0 : before + 1, end = text.find('\n', at);
    return {std::min(begin, at), end == std::string::npos ? text.size() : end + 1};
  };
  const auto [begin, end] = line_at(input);
  const std::string line = input.substr(begin, end - begin);
  switch (random.below(5)) {
    case 0: input.erase(begin, end - begin); break;
    case 1: {
      std::string many;
      for (size_t n = random.one_in(50) ? 500 : random.few(8); n > 0; --n) many += line;
      input.insert(begin, many);
      break;
    }
    case 2: {
      input.erase(begin, end - begin);
      input.insert(line_at(input).first, line);
      break;
    }
    case 3: {
      const auto [from, to] = line_at(other);
      input.insert(begin, other, from, to - from);
      break;
    }
    default:
      if (random.one_in(2)) {
        input.insert(begin, random.few(6), ' ');
      } else {
        const size_t blanks = std::min(input.find_first_not_of(' ', begin), input.size()) - begin;
        input.erase(begin, std::min(blanks, random.few(4)));
      }
  }
}

std::string read_source(const std::string& path) {
  std::ifstream in(std::filesystem::path(HANOK_SOURCE_DIR) / path, std::ios::binary);
  HANOK_REQUIRE(in.is_open(), kIo) << "seed: got no file, expected one; " << path;
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

const std::string& work_folder() {
  struct Folder {
    std::string path;
    Folder() {
      path = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path().string();
      path += "/hanok_fuzz_XXXXXX";
      HANOK_REQUIRE(::mkdtemp(path.data()) != nullptr, kIo) << "temporary folder: got none; " << path;
    }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  };
  static const Folder kFolder;
  return kFolder.path;
}

void put_file(const std::string& name, std::string_view bytes) {
  const std::string path = work_folder() + "/" + name;
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  HANOK_REQUIRE(out.good(), kIo) << "write: got an error, expected success; " << path;
}

}  // namespace hanok::fuzz
