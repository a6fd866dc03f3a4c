// Encodes what an oracle script wrote. Records are a little-endian uint32 size and bytes.
//   tokenizer_probe encode|offsets|literal FOLDER IN OUT
//       OUT, per record: uint32 count, int32 ids; `encode` adds the decoded text as a record, `offsets` int64 begin,
//       end per id
//   tokenizer_probe time FOLDER IN [THREADS]     prints the seconds of encoding every record, and the number of ids
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

#include "dataio/tokenizer.h"

namespace {

std::vector<std::string> records(const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(in), {}};
  std::vector<std::string> out;
  for (size_t at = 0; at + 4 <= all.size();) {
    uint32_t size;
    std::memcpy(&size, all.data() + at, 4);
    out.push_back(all.substr(at + 4, size));
    at += 4 + size;
  }
  return out;
}

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string mode = argc > 3 ? argv[1] : "";
  if (mode.empty() || (argc < 5 && mode != "time")) return 2;
  const auto tokenizer = hanok::Tokenizer::from_folder(argv[2]);
  const auto texts = records(argv[3]);
  if (mode == "time") {
    const int num_threads = argc > 4 ? std::stoi(argv[4]) : 1;
    std::atomic<size_t> next{0}, tokens{0};
    const auto encode_all = [&] {
      size_t count = 0;
      for (size_t i; (i = next++) < texts.size();) count += tokenizer.encode(texts[i]).size();
      tokens += count;
    };
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (int i = 1; i < num_threads; ++i) others.emplace_back(encode_all);
    encode_all();
    for (std::thread& other : others) other.join();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    std::cout << taken.count() << " " << tokens << "\n";
    return 0;
  }
  std::string out;
  for (const auto& text : texts) {
    const hanok::Span all{0, static_cast<int64_t>(text.size())};
    hanok::Encoding encoding;
    if (mode == "offsets") {
      encoding = tokenizer.encode_with_offsets(text);
    } else if (mode == "literal") {
      encoding.ids = tokenizer.encode(text, {&all, 1});
    } else {
      encoding.ids = tokenizer.encode(text);
    }
    put(out, static_cast<uint32_t>(encoding.ids.size()));
    for (const int32_t id : encoding.ids) put(out, id);
    for (const auto& span : encoding.offsets) put(out, span.begin), put(out, span.end);
    if (mode != "encode") continue;
    const std::string decoded = tokenizer.decode(encoding.ids);
    put(out, static_cast<uint32_t>(decoded.size()));
    out += decoded;
  }
  std::ofstream(argv[4], std::ios::binary) << out;
  std::cout << tokenizer.content_hash() << " " << tokenizer.vocab_size() << "\n";
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
