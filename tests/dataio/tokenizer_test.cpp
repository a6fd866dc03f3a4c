#include "dataio/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "base/error.h"
#include "dataio/text/bpe.h"
#include "dataio/text/unicode.h"
#include "temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const Tokenizer& qwen() {
  static const Tokenizer tokenizer = Tokenizer::from_folder(HANOK_SOURCE_DIR "/tests/data/qwen_tokenizer");
  return tokenizer;
}

/// tokenizer.json of 256 bytes, three merges and added tokens of each kind.
json small_tokenizer() {
  json vocab;
  for (int b = 0; b < 256; ++b) {
    std::string token;
    unicode::append(token, byte_alphabet::character(static_cast<uint8_t>(b)));
    vocab[token] = b;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["bc"] = 258;
  const auto token = [](int id, const char* content, bool special) {
    return json{{"id", id},
                {"content", content},
                {"single_word", false},
                {"lstrip", false},
                {"rstrip", false},
                {"normalized", false},
                {"special", special}};
  };
  return {{"version", "1.0"},
          {"added_tokens", {token(259, "<|end|>", true), token(260, "<think>", false), token(261, "<|end", true)}},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers",
             {{{"type", "Split"},
               {"pattern", {{"Regex", "\\p{L}+|\\s+|[^\\s\\p{L}]+"}}},
               {"behavior", "Isolated"},
               {"invert", false}},
              {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", json{"ab", "c"}, "b c"}}}}};
}

Tokenizer load(const std::string& text) {
  const TempFolder folder;
  std::ofstream(folder / "tokenizer.json") << text;
  return Tokenizer::from_folder(folder.path());
}
Tokenizer load(const json& value) {
  return load(value.dump());
}

TEST(Tokenizer, GivesTheIdsOfTheReference) {
  // From tokenizers 0.23.3 with the same files; tests/oracle/tokenizer.py compares many more.
  EXPECT_EQ(qwen().encode("Hello, world! It's 2026."), (Ids{9707, 11, 1879, 0, 1084, 594, 220, 17, 15, 17, 21, 13}));
  EXPECT_EQ(qwen().encode("\uc548\ub155\ud558\uc138\uc694, \uc138\uacc4"), (Ids{126246, 144370, 91145, 11, 133196}));
  EXPECT_EQ(qwen().encode("  \n\n  x  y \t"), (Ids{18611, 220, 856, 220, 379, 7018}));
  EXPECT_EQ(qwen().encode("<|im_start|>user\nhi<|im_end|>\n"), (Ids{151644, 872, 198, 6023, 151645, 198}));
  EXPECT_EQ(qwen().encode("\U0001F469\u200D\U0001F469"), (Ids{145233, 378, 235, 145233}));
  EXPECT_EQ(qwen().encode(""), Ids{});
}

TEST(Tokenizer, ComposesBeforeItSplits) {
  EXPECT_EQ(qwen().encode("cafe\u0301 na\u0308ive"), (Ids{924, 58858, 43117, 533}));
  EXPECT_EQ(qwen().encode("caf\u00e9 n\u00e4ive"), (Ids{924, 58858, 43117, 533}));
  EXPECT_EQ(qwen().encode("a\u0301\u0323"), qwen().encode("\u1ea1\u0301")) << "marks are put in order first";
}

TEST(Tokenizer, ClassesAreOfTheReferenceAndNotOfThisMachinesLibraries) {
  EXPECT_EQ(qwen().encode(" \u180e!"),
            (Ids{86089, 254, 236, 0}));                        // no white space since Unicode 6.3, but in PCRE2's \s
  EXPECT_EQ(qwen().encode("I'\u017f"), (Ids{40, 6, 144815}));  // the long s is an s under (?i:
  EXPECT_EQ(unicode::category(0x1C89), unicode::kLu);          // assigned in Unicode 16.0
  std::string out;
  unicode::OffsetMap map;
  EXPECT_FALSE(unicode::normalize_nfc("\U00011935\U00011930", out, map));  // composes since Unicode 13.0, there not
}

TEST(Tokenizer, DecodesWhatItEncoded) {
  for (const char* text : {"Hello", " \n\t", "\uc548\ub155 \U0001F600", "a<|im_end|>b", ""}) {
    EXPECT_EQ(qwen().decode(qwen().encode(text)), text);
  }
  const Ids ids = {151644, 872, 198, 6023, 151645, 999999, -1};
  EXPECT_EQ(qwen().decode(ids), "<|im_start|>user\nhi<|im_end|>");
  EXPECT_EQ(qwen().decode(ids, /*skip_special=*/true), "user\nhi");
  EXPECT_EQ(qwen().decode(Ids{145233, 378}), "\U0001F469\ufffd");  // a part of a character
}

TEST(Tokenizer, ReplacesInvalidBytesOnceForEachMaximalPart) {
  const auto same = [&](std::string_view broken, std::string_view repaired) {
    EXPECT_EQ(qwen().encode(broken), qwen().encode(repaired)) << repaired;
  };
  same("a\xff", "a\ufffd");
  same("\xe2\x82z", "\ufffdz");
  same("\xf0\x9f\x98", "\ufffd");
  same("\xed\xa0\x80", "\ufffd\ufffd\ufffd");
  same("\xc0\xaf", "\ufffd\ufffd");
  same("\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd");
}

TEST(Tokenizer, KnowsTokensByText) {
  EXPECT_EQ(qwen().id("<|im_end|>"), 151645);
  EXPECT_EQ(qwen().id("Hello"), 9707);
  EXPECT_EQ(qwen().id("no such token at all"), std::nullopt);
  EXPECT_EQ(qwen().vocab_size(), 151646);
}

TEST(Tokenizer, LiteralTextHoldsNoSpecialTokens) {
  const Tokenizer tokenizer = load(small_tokenizer());
  const std::string text = "a<|end|><think><|end|>";
  EXPECT_EQ(tokenizer.encode(text), (Ids{97, 259, 260, 259}));
  const Span first{0, 15};  // all but the last token
  const Ids ids = tokenizer.encode(text, {&first, 1});
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 259), 1);
  EXPECT_EQ(ids.back(), 259);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 260), 1) << "tokens that are not special match anywhere";
  EXPECT_EQ(tokenizer.decode(ids), text);
  const Span inside{3, 5};  // the token begins before the span
  EXPECT_EQ(tokenizer.encode(text, {&inside, 1}), tokenizer.encode(text));
}

TEST(Tokenizer, OffsetsPointIntoTheInput) {
  const Tokenizer tokenizer = load(small_tokenizer());
  const auto spans = [&](std::string_view text) { return tokenizer.encode_with_offsets(text).offsets; };
  EXPECT_EQ(spans("abcx<|end|> "), (std::vector<Span>{{0, 3}, {3, 4}, {4, 11}, {11, 12}}));
  EXPECT_EQ(spans("a\xff"
                  "b"),
            (std::vector<Span>{{0, 1}, {1, 2}, {1, 2}, {1, 2}, {2, 3}}));
  // e + U+0301 becomes one character of two bytes, each of which came from all three.
  EXPECT_EQ(spans("xe\u0301y"), (std::vector<Span>{{0, 1}, {1, 4}, {1, 4}, {4, 5}}));
  EXPECT_EQ(tokenizer.encode_with_offsets("abcx").ids, tokenizer.encode("abcx"));
}

TEST(Tokenizer, MergesByRankAndNotByLength) {
  const Tokenizer tokenizer = load(small_tokenizer());
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{257}));
  EXPECT_EQ(tokenizer.encode("aabcbc"), (Ids{97, 257, 258}));
  std::string word;
  Ids expected;
  for (int i = 0; i < 5000; ++i)
    word += "abcb", expected.insert(expected.end(), {257, 98});  // longer than the short path
  EXPECT_EQ(tokenizer.encode(word), expected);
}

/// The definition: join the pair of lowest rank, the leftmost of equals, until none has a rank.
Ids merged_by_definition(Ids ids, const std::vector<BpeMerge>& merges) {
  for (;;) {
    size_t best = 0, best_rank = merges.size();
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left == ids[i] && merges[rank].right == ids[i + 1]) best = i, best_rank = rank;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = merges[best_rank].joined;
    ids.erase(ids.begin() + static_cast<int64_t>(best) + 1);
  }
}

/// A random Bpe over a, b, c, and its merges.
std::pair<Bpe, std::vector<BpeMerge>> random_bpe(std::mt19937& random) {
  std::array<int32_t, 256> bytes;
  bytes.fill(-1);
  for (int c = 0; c < 3; ++c) bytes['a' + c] = c;
  std::vector<BpeMerge> merges;
  std::set<std::pair<int32_t, int32_t>> known;
  for (int32_t joined = 3; joined < 20; ++joined) {
    const auto one = [&] { return static_cast<int32_t>(random() % static_cast<unsigned>(joined)); };
    const std::pair<int32_t, int32_t> pair = {one(), one()};
    if (known.insert(pair).second) merges.push_back({pair.first, pair.second, joined});
  }
  return {Bpe(bytes, merges), merges};
}

void expect_defined_ids(const Bpe& bpe,
                        const std::vector<BpeMerge>& merges,
                        const std::string& word,
                        Bpe::Scratch& scratch) {
  Ids expected, got;
  for (const char c : word) expected.push_back(c - 'a');
  bpe.encode(word, scratch, got);
  EXPECT_EQ(got, merged_by_definition(std::move(expected), merges)) << word;
}

std::string random_word(std::mt19937& random, size_t size) {
  std::string word;
  while (word.size() < size) word += static_cast<char>('a' + random() % 3);
  return word;
}

TEST(Bpe, MergesAsDefinedOnShortAndLongWords) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const auto [bpe, merges] = random_bpe(random);
    Bpe::Scratch scratch;
    for (const size_t size : {1, 2, 7, 29, 48, 49, 120})
      expect_defined_ids(bpe, merges, random_word(random, size), scratch);
  }
}

TEST(Bpe, TheCacheOfWordsTellsWordsApart) {
  std::mt19937 random(7);
  const auto [bpe, merges] = random_bpe(random);
  Bpe::Scratch scratch;
  for (int i = 0; i < 20000; ++i)
    expect_defined_ids(bpe, merges, random_word(random, 9), scratch);  // many share a slot
}

TEST(Tokenizer, ALongRunTakesNoQuadraticTime) {
  const auto seconds = [&](const std::string& text) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(qwen().decode(qwen().encode(text)), text);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  // Quadratic work would be 10^12 steps: hours, where the bound is generous.
  EXPECT_LT(seconds(std::string(1 << 20, 'a')), 30);
  EXPECT_LT(seconds(std::string(1 << 20, ' ')), 30);
  std::string marks = "a";
  for (int i = 0; i < 100000; ++i) marks += "\u0323\u0334";  // combining classes 220 and 1: NFC sorts them
  const Ids ids = qwen().encode(marks);
  EXPECT_GT(ids.size(), 1000u);
}

TEST(Tokenizer, ManyThreadsEncodeAtOnce) {
  const std::string text = "The quick brown fox, 123 times.\n\uac00\ub098\ub2e4";
  const Ids expected = qwen().encode(text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) wrong[t] += qwen().encode(text) != expected;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4));
}

TEST(Tokenizer, HashChangesWithWhateverDecidesIds) {
  const std::string hash = load(small_tokenizer()).content_hash();
  EXPECT_EQ(hash.size(), 16u);
  EXPECT_EQ(load(small_tokenizer()).content_hash(), hash);
  const auto changed = [&](const char* pointer, json value) {
    json other = small_tokenizer();
    other[json::json_pointer(pointer)] = std::move(value);
    return load(other).content_hash() != hash;
  };
  EXPECT_TRUE(changed("/normalizer", nullptr));
  EXPECT_TRUE(changed("/model/merges", {"a b", "b c"}));
  EXPECT_TRUE(changed("/model/ignore_merges", true));
  EXPECT_TRUE(changed("/added_tokens/0/lstrip", true));
  EXPECT_TRUE(changed("/added_tokens/1/content", "<other>"));
  EXPECT_TRUE(changed("/pre_tokenizer/pretokenizers/0/pattern/Regex", "\\p{L}|\\s+|[^\\s\\p{L}]+"));
  EXPECT_FALSE(changed("/padding", {{"length", 3}})) << "padding decides no ids";
}

TEST(Tokenizer, RefusesWhatItDoesNotUnderstandByName) {
  const auto refused = [&](const char* pointer, json value, const char* named) {
    json other = small_tokenizer();
    other[json::json_pointer(pointer)] = std::move(value);
    const std::string error = message_of(ErrorKind::kData, [&] { load(other); });
    EXPECT_NE(error.find(named), std::string::npos) << pointer << ": " << error;
  };
  const char* expression = "/pre_tokenizer/pretokenizers/0/pattern/Regex";
  refused("/version", "2.0", "version");
  refused("/model/type", "Unigram", "model.type: got 'Unigram'");
  refused("/model/dropout", 0.1, "model.dropout");
  refused("/model/byte_fallback", true, "model.byte_fallback");
  refused("/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix");
  refused("/model/vocab", json::object(), "model.vocab");
  refused("/model/vocab/ab", 97, "which another token has");
  refused("/model/vocab/ab", 259, "got id 259, which another token has");
  refused("/model/vocab/ab", -1, "id '-1'");
  refused("/model/vocab/ab", 2000000000, "expected below");
  refused("/model/merges/0", "a z z", "merge 1");
  refused("/model/merges/0", "z z", "'zz' is not in the vocabulary");
  refused("/model/merges/0", 5, "model.merges");
  refused("/model/merges", 5, "model.merges");
  refused("/normalizer", {{"type", "NFKC"}}, "normalizer.type: got 'NFKC'");
  refused("/decoder", {{"type", "Metaspace"}}, "decoder.type");
  refused("/pre_tokenizer", {{"type", "Metaspace"}}, "got 'Metaspace'");
  refused("/pre_tokenizer", nullptr, "pre_tokenizer");
  refused("/pre_tokenizer/pretokenizers/0/behavior", "Removed", "behavior");
  refused("/pre_tokenizer/pretokenizers/0/invert", true, "invert");
  refused("/pre_tokenizer/pretokenizers/1/add_prefix_space", true, "add_prefix_space");
  refused("/added_tokens/0/id", 300, "got id 300, expected 259");
  refused("/added_tokens/0/content", 7, "added_tokens.content");
  for (const char* wrong :
       {"^a",      "\\p{Han}", "\\bx", "a**",      "(a",    "a)", "[a",    "[[a]]",       "(?i:[a])", "(?i:st)",
        "(?<n>a)", "x*",       "\\1",  "a{99999}", "[z-a]", "*",  "\\p{L", "(?i:\u00e9)", "a{2}+",    "\\"}) {
    refused(expression, wrong, "split expression");
  }
  std::string all;
  for (int i = 0; i < 40; ++i) all += "[\\S]";
  refused(expression, all, "classes of more than");
  const json split = small_tokenizer()["pre_tokenizer"]["pretokenizers"][0];
  refused("/pre_tokenizer/pretokenizers", std::vector<json>(20, split), "at most 16 of type Split");
}

TEST(Tokenizer, RefusesAFolderWithoutFiles) {
  const TempFolder folder;
  EXPECT_THROW(Tokenizer::from_folder(folder.path()), Error);
  std::ofstream(folder / "vocab.json") << R"({"a": 0})";
  std::ofstream(folder / "merges.txt") << "#version: 0.2\na a\n";
  EXPECT_ERROR(
      error_of([&] { Tokenizer::from_folder(folder.path()); }), ErrorKind::kData, "'aa' is not in the vocabulary");
}

TEST(Tokenizer, HostileJsonEndsInAnErrorOrATokenizer) {
  const std::string good = small_tokenizer().dump();
  for (const std::string& bad : {std::string(100000, '['),
                                 std::string(R"({"model":)"),
                                 std::string("\xff\xfe"),
                                 std::string(),
                                 "{\"a\":" + std::string(50000, '[') + std::string(50000, ']') + "}",
                                 good + "x"}) {
    EXPECT_THROW(load(bad), Error);
  }
  std::mt19937 random(20261121);
  int loaded = 0;
  for (int i = 0; i < 1500; ++i) {
    std::string text = good;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int c = 0; c < changes; ++c) {
      const size_t at = random() % text.size();
      const size_t other = random() % text.size();
      switch (random() % 4) {
        case 0: text[at] = static_cast<char>(random()); break;
        case 1: text.erase(at, random() % 20); break;
        case 2: text.insert(at, text.substr(other, random() % 40)); break;
        default: text.insert(at, 1, "[]{},:\"0\\"[random() % 9]); break;
      }
    }
    try {
      const Tokenizer tokenizer = load(text);
      ++loaded;
      tokenizer.decode(tokenizer.encode("abc <|end|> \uac00 'x 12"));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    }
  }
  EXPECT_GT(loaded, 10);  // else the mutations test nothing but the JSON parser
}

}  // namespace
}  // namespace hanok
