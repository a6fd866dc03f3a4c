// Tokenizers, tables, conversations, templates and configs.
#include <xxhash.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "dataio/chat.h"
#include "dataio/import/chat_jsonl.h"
#include "dataio/import/vqa_csv.h"
#include "dataio/text/tokenizer_spec.h"
#include "dataio/tokenizer.h"
#include "dataio/vision_prep.h"
#include "tests/fuzz/fuzz.h"

namespace hanok::fuzz {
namespace {

constexpr size_t kFixedBytes = 64 << 10;  // messages, readers' buffers
constexpr size_t kPerJsonByte = 32;       // "0," is a JSON value of 16 bytes, three times while its list grows

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

/// A folder below the work folder, made once.
std::string folder(const std::string& name) {
  const std::string path = work_folder() + "/" + name;
  std::filesystem::create_directories(path);
  return path;
}

// tokenizer.json, in a small form.

std::string tokenizer_json(const std::string& pre_tokenizer, const std::string& merges, const std::string& more) {
  return R"({"version":"1.0","added_tokens":[{"id":12,"content":"<|end|>","special":true,"normalized":false},)"
         R"({"id":13,"content":"<t>","single_word":true,"lstrip":true,"rstrip":true,"special":false}],)"
         R"("normalizer":{"type":"NFC"},"pre_tokenizer":)" +
         pre_tokenizer +
         R"(,"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2,"ab":3,"abc":4,)"
         R"("\u0120":5,"\u0120a":6,"1":7,"\u00c3":8,"\u00a9":9,"\u00c3\u00a9":10,"bc":11},"merges":)" +
         merges + more + "}}";
}

std::vector<std::string> tokenizer_seeds() {
  const std::string strings = R"(["a b","ab c","\u0120 a","\u00c3 \u00a9","b c"])";
  const std::string pairs = R"([["a","b"],["ab","c"]])";
  const auto split = [](const std::string& expression) {
    return R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":")" + expression +
           R"("},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
  };
  return {tokenizer_json(R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})", strings, ""),
          tokenizer_json(split(" ?[a-c]+|\\\\d{1,3}|(?i:'s)|[^a-c\\\\d]+"), pairs, R"(,"ignore_merges":true)"),
          tokenizer_json(split("(?:a(?!b)|.)"), strings, R"(,"unk_token":null,"byte_fallback":false,"dropout":null)"),
          tokenizer_json(split("\\\\s+(?!\\\\S)|\\\\p{Lu}*\\\\p{Ll}+|\\\\S"), "[]", "")};
}

void mutate_tokenizer(std::string& input, const std::string& other, Random& random) {
  static const std::vector<std::string> kWords = {"\\\\p{L}",
                                                  "\\\\P{N}",
                                                  "\\\\s",
                                                  "\\\\S",
                                                  "[^",
                                                  "]",
                                                  "(?i:",
                                                  "(?=",
                                                  "(?<!",
                                                  "(?>",
                                                  ")",
                                                  "|",
                                                  "{2,3}",
                                                  "{9999}",
                                                  "*+",
                                                  "+?",
                                                  "\\\\x{10FFFF}",
                                                  "\\\\u00e9",
                                                  "\xEA\xB0\x80",
                                                  "-",
                                                  "\"ByteLevel\"",
                                                  "\"Split\"",
                                                  "\"Sequence\"",
                                                  "\"NFC\"",
                                                  "\"normalizers\":[",
                                                  "\"id\":",
                                                  "\"content\":\"\"",
                                                  "#version ",
                                                  " "};
  if (random.one_in(12)) return mutate_bytes(input, other, random);
  if (random.one_in(4)) return mutate_words(input, kWords, random);
  mutate_json(input, other, random);
}

/// Bound of the reader: 32 times the file. Of the tokenizer one in eight inputs make: 64 times, and 64 MiB, which hold
/// the table by id (at most a million holes) and what the split expressions compile to.
void run_tokenizer(const std::string& input, Budget& budget) {
  static const std::string kFolder = folder("tokenizer");
  put_file("tokenizer/tokenizer.json", input);
  budget.begin_phase("tokenizer.json", kFixedBytes + kPerJsonByte * input.size());
  const TokenizerSpec spec = read_tokenizer_spec(kFolder);
  budget.end_phase();
  if (XXH3_64bits(input.data(), input.size()) % 8 != 0) return;
  budget.begin_phase("tokenizer", (size_t{64} << 20) + 64 * input.size());
  const Tokenizer tokenizer = Tokenizer::from_folder(kFolder);
  const std::string text =
      "abc ab  a1\xC3\xA9<|end|> <t>\n\xEA\xB0\x80"
      "e\xCC\x81\xFF's ABCabc123456 <|end|>b";
  const std::vector<Span> literal = {{10, 22}};
  const Encoding encoding = tokenizer.encode_with_offsets(text, literal);
  require(encoding.ids == tokenizer.encode(text, literal), "tokenizer: offsets change the ids");
  require(encoding.ids.size() == encoding.offsets.size(), "tokenizer: not one offset an id");
  for (const Span& span : encoding.offsets) {
    require(0 <= span.begin && span.begin <= span.end && span.end <= static_cast<int64_t>(text.size()),
            "tokenizer: an offset outside the text");
  }
  for (const int32_t id : encoding.ids)
    require(id >= 0 && id < tokenizer.vocab_size(), "tokenizer: an id beyond the vocabulary");
  tokenizer.decode(encoding.ids, true);
}

// tokenizer_config.json and its older neighbours, beside a tokenizer.json that is well.

std::vector<std::string> tokenizer_config_seeds() {
  return {R"({"added_tokens_decoder":{"12":{"content":"<|end|>","special":true},"14":{"content":"<x>","lstrip":true}},)"
          R"("eos_token":"<|end|>","pad_token":{"content":"<|pad|>"},"additional_special_tokens":["<x>","<y>"]})",
          R"({"bos_token":null,"extra_special_tokens":{"image_token":"<img>"},"split_special_tokens":false})"};
}

/// Bound: 32 times both files.
void run_tokenizer_config(const std::string& input, Budget& budget) {
  static const std::string kFolder = folder("tokenizer_config");
  static const std::string kJson = tokenizer_seeds()[0];
  static const bool made = (put_file("tokenizer_config/tokenizer.json", kJson), true);
  require(made, "tokenizer_config: no file");
  put_file("tokenizer_config/tokenizer_config.json", input);
  budget.begin_phase("tokenizer_config.json", kFixedBytes + kPerJsonByte * (input.size() + kJson.size()));
  read_tokenizer_spec(kFolder);
}

// Tables and conversations: a letter says the encoding (k: CP949), then the file.

DatasetConfig dataset(const std::string& path, const std::string& input) {
  DatasetConfig config;
  config.path = path;
  config.encoding = input.starts_with('k') ? "cp949" : "utf8";
  return config;
}

std::string file_bytes(const std::string& input) {
  return input.substr(std::min<size_t>(1, input.size()));
}

void require_text(const std::string& text) {
  require(is_utf8(text), "record: text that is not UTF-8");
}

void require_sound(const Record& record) {
  require_text(record.detail);
  if (record.is_wrong()) return;
  require(!record.messages.empty(), "record: no messages");
  require(record.answer >= -1 && record.answer < std::max<int>(1, static_cast<int>(record.choices.size())),
          "record: an answer that is no choice");
  require_text(record.id);
  require_text(record.question);
  for (const std::string& choice : record.choices) require_text(choice);
  for (const Message& message : record.messages) {
    require_text(message.role);
    for (const ContentPart& part : message.content) require_text(part.text);
  }
}

std::vector<std::string> csv_seeds() {
  return {"uid,path,question,a,b,c,d,answer\n1,x.png,What?,1,2,3,4,b\n2,y.png,\"a \"\"b\"\"\nc\",1,2,,,A\n",
          "u\xEF\xBB\xBFid,path,question,a,b,c,d\r\n1,x.png,\"q,r\",1,2,3,4\r\n\r\n3,z,{question}{a},5,6,7,\r\n",
          "kanswer,d,c,b,a,question,path,id\nc,\xB0\xA1,\xB3\xAA,\xB4\xD9,\xB6\xF3,\xC1\xFA\xB9\xAE,p,7\n",
          "u" + read_source("tests/data/digits/digits.csv").substr(0, 600)};
}

void mutate_csv(std::string& input, const std::string& other, Random& random) {
  static const std::vector<std::string> kWords = {
      "\"",     "\"\"",       ",",   ",,,,,,",       "\r\n",         "\n",
      "\r",     "\"\n",       "\",", "\xEF\xBB\xBF", "\xFF\xFE",     "id,path,question,a,b,c,d",
      "answer", "{question}", "{a}", "\xB0\xA1",     "\xEA\xB0\x80", std::string(1, '\0'),
      " ",      "\t",         "e"};
  if (random.one_in(3)) return mutate_bytes(input, other, random);
  if (random.one_in(2)) return mutate_words(input, kWords, random);
  mutate_lines(input, other, random);
}

/// Bound: 128 times the input (an empty field is one byte of a file and a string of 32 in a list
/// that grows by doubling).
void run_csv(const std::string& input, Budget& budget) {
  const std::string path = work_folder() + "/fuzz.csv";
  put_file("fuzz.csv", file_bytes(input));
  budget.begin_phase("CSV", kFixedBytes + 128 * input.size());
  VqaCsvSource source("fuzz", dataset(path, input));
  for (Record record; source.next(record);) require_sound(record);
}

std::vector<std::string> jsonl_seeds() {
  return {
      "u{\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image\",\"image\":\"x.png\"},"
      "{\"type\":\"text\",\"text\":\"What?\"}]},{\"role\":\"assistant\",\"content\":\"<think>b</think>It.\"}]}\n",
      "u{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":[{\"type\":\"video\","
      "\"video\":\"v\",\"fps\":2.5},{\"type\":\"image_url\",\"image_url\":{\"url\":\"y.jpg\"}}]}]}\r\n\n{\"id\":3,"
      "\"messages\":"
      "[{\"role\":\"tool\",\"content\":\"x\"}]}",
      "u{\"messages\":[{\"role\":\"user\",\"content\":\"<image>a<image>\"},{\"role\":\"user\",\"content\":[{\"type\":"
      "\"image\"}]}],\"images\":[\"1.png\",{\"path\":\"2.png\"},\"3.png\"],\"tools\":[]}",
      "k{\"messages\":[{\"role\":\"user\",\"content\":\"\xB0\xA1\xB3\xAA\"},{\"role\":\"assistant\",\"content\":\"\"}]"
      "}"};
}

void mutate_jsonl(std::string& input, const std::string& other, Random& random) {
  if (random.one_in(8)) return mutate_bytes(input, other, random);
  if (random.one_in(8)) return mutate_lines(input, other, random);
  mutate_json(input, std::min<size_t>(1, input.size()), input.size(), other, random);
}

/// Bound: 64 times the input (JSON values, and the rendered text).
void run_jsonl(const std::string& input, Budget& budget) {
  static const auto kTemplates = [] {
    std::vector<std::shared_ptr<const ChatTemplate>> all;
    for (const std::string& name : known_chat_templates()) all.push_back(chat_template_from_folder("", name));
    return all;
  }();
  const std::string path = work_folder() + "/fuzz.jsonl";
  put_file("fuzz.jsonl", file_bytes(input));
  budget.begin_phase("JSONL", kFixedBytes + 64 * input.size());
  ChatJsonlSource source("fuzz", dataset(path, input));
  for (Record record; source.next(record);) {
    require_sound(record);
    if (record.is_wrong()) continue;
    const auto& chat = kTemplates[static_cast<size_t>(record.number) % kTemplates.size()];
    try {
      const RenderedChat rendered = chat->render(record.messages, record.number % 2 == 0, false);
      require_text(rendered.text);
      for (const auto* spans : {&rendered.labels, &rendered.literal}) {
        for (const Span& span : *spans) {
          require(0 <= span.begin && span.begin <= span.end && span.end <= static_cast<int64_t>(rendered.text.size()),
                  "chat: a span outside the text");
        }
      }
    } catch (const Error&) {  // a role that the template does not know: the record is counted, the file goes on
    }
  }
}

// Chat templates: a letter says the file, then its bytes.

std::vector<std::string> template_seeds() {
  const std::string jinja = jinja_of("qwen3_vl");
  const std::string quoted = nlohmann::json(jinja.substr(0, 200)).dump();
  return {
      "j" + jinja,
      "t{\"chat_template\":" + quoted + "}",
      "t{\"chat_template\":[{\"name\":\"x\",\"template\":\"y\"},{\"name\":\"default\",\"template\":" + quoted + "}]}",
      "c{\"chat_template\":" + quoted + "}"};
}

void mutate_template(std::string& input, const std::string& other, Random& random) {
  if (input.starts_with('j') || random.one_in(6)) return mutate_bytes(input, other, random);
  mutate_json(input, 1, input.size(), other, random);
}

/// Bound: 32 times the file.
void run_template(const std::string& input, Budget& budget) {
  const char kind = input.empty() ? 'j' : input[0];
  const std::string name = kind == 't' ? "tokenizer_config" : kind == 'c' ? "template_json" : "jinja";
  const std::string path = folder("chat_" + name);
  put_file("chat_" + name +
               (kind == 't'   ? "/tokenizer_config.json"
                : kind == 'c' ? "/chat_template.json"
                              : "/chat_template.jinja"),
           file_bytes(input));
  budget.begin_phase("chat template", kFixedBytes + kPerJsonByte * input.size());
  require(chat_template_from_folder(path, "") != nullptr, "chat: no template");
}

void mutate_plain_json(std::string& input, const std::string& other, Random& random) {
  if (random.one_in(8)) return mutate_bytes(input, other, random);
  mutate_json(input, other, random);
}

// Preprocessor configs: a letter says the file.

std::vector<std::string> vision_config_seeds() {
  const std::string image =
      R"({"image_processor_type":"Qwen2VLImageProcessorFast","patch_size":16,"temporal_patch_size":2,)"
      R"("merge_size":2,"size":{"shortest_edge":65536,"longest_edge":16777216},"resample":3,)"
      R"("image_mean":[0.5,0.5,0.5],"image_std":[0.5,0.5,0.5],"rescale_factor":0.00392156862745098,)"
      R"("do_resize":true,"do_pad":false,"min_pixels":1024,"max_pixels":4194304})";
  const std::string video =
      R"({"video_processor_type":"Qwen3VLVideoProcessor","fps":2,"min_frames":4,"max_frames":768,)"
      R"("patch_size":16,"size":{"shortest_edge":4096,"longest_edge":25165824},"max_video_tokens":768,)"
      R"("cap_pixels_per_frame":true,"do_sample_frames":true})";
  return {"i" + image, "v" + video, "p{\"image_processor\":" + image + ",\"video_processor\":" + video + "}"};
}

void mutate_vision_config(std::string& input, const std::string& other, Random& random) {
  if (random.one_in(8)) return mutate_bytes(input, other, random);
  mutate_json(input, std::min<size_t>(1, input.size()), input.size(), other, random);
}

/// Bound: 32 times the file. Sizes that follow from it are multiples of its patches.
void run_vision_config(const std::string& input, Budget& budget) {
  const char kind = input.empty() ? 'i' : input[0];
  const std::string name = kind == 'v'   ? "video_preprocessor_config"
                           : kind == 'p' ? "processor_config"
                                         : "preprocessor_config";
  const std::string path = folder("vision_" + name);
  put_file("vision_" + name + "/" + name + ".json", file_bytes(input));
  budget.begin_phase("vision config", kFixedBytes + kPerJsonByte * input.size());
  const VisionPrep prep = vision_prep_from_folder(path);
  const ImageSize size = prepared_size({37, 1000}, prep);
  require(size.height > 0 && size.width > 0 && size.height % prep.factor() == 0 && size.width % prep.factor() == 0,
          "vision config: a size that is no multiple");
  const ImageSize video = prepared_video_size(7, {480, 641}, prep);
  require(video.height > 0 && video.width > 0 && video.height % prep.factor() == 0,
          "vision config: a size that is no multiple");
}

// Run configs: lines "#set KEY=VALUE" are given as --set.

std::vector<std::string> yaml_seeds() {
  std::vector<std::string> seeds = {
      read_source("configs/run/digits.yaml"),
      read_source("configs/run/gsm8k_text.yaml"),
      "a: &x [1, 2]\nb: *x\n#set optimizer.lr=1e-4\n#set stages.0={name: s}\n",
      "model: {decoder: {layers: 2, heads: 4}}\nstages:\n- {name: a, mixture: {x: 1}}\n#set stages.a.steps=3\n"};
  for (std::string& seed : seeds) {  // base files lie elsewhere
    for (size_t at; (at = seed.find("base:")) != std::string::npos;) seed.replace(at, 5, "path:");
  }
  return seeds;
}

void mutate_yaml(std::string& input, const std::string& other, Random& random) {
  static const std::vector<std::string> kWords = {"&a ",
                                                  "*a",
                                                  "<<: *a",
                                                  "- ",
                                                  ": ",
                                                  "? ",
                                                  "!!binary ",
                                                  "!x ",
                                                  "{",
                                                  "}",
                                                  "[",
                                                  "]",
                                                  "|\n",
                                                  ">-\n",
                                                  "---\n",
                                                  "...\n",
                                                  "\t",
                                                  "#",
                                                  "'",
                                                  "\"",
                                                  "\"\\u",
                                                  "\"\\x",
                                                  "%YAML 9.9\n",
                                                  "null",
                                                  "~",
                                                  ".inf",
                                                  ".nan",
                                                  "0x1F",
                                                  "1e400",
                                                  "-1",
                                                  "99999999999999999999",
                                                  "optimizer",
                                                  "stages",
                                                  "data",
                                                  "sets",
                                                  "\n#set ",
                                                  "=",
                                                  ".",
                                                  "\xEF\xBB\xBF",
                                                  "\xFF",
                                                  ", ",
                                                  "&a [*a,*a]"};
  if (random.one_in(40)) {  // deep
    const size_t levels = random.one_in(4) ? 2000 : random.below(100);
    const char open = "[{-?"[random.below(4)];
    return void(input.insert(random.below(input.size() + 1), std::string(levels, open)));
  }
  if (random.one_in(20)) {
    const size_t at = input.find_first_of("0123456789", random.below(input.size() + 1));
    if (at != std::string::npos) return void(input.replace(at, random.few(6), odd_number(random)));
  }
  if (random.one_in(3)) return mutate_bytes(input, other, random);
  if (random.one_in(2)) return mutate_words(input, kWords, random);
  mutate_lines(input, other, random);
}

/// Bound: 1024 times the text (yaml-cpp keeps 300 bytes a node, and a node may be two bytes), and 32 MiB: the 100,000
/// values that aliases may multiply to, and messages that name all known keys.
void run_yaml(const std::string& input, Budget& budget) {
  std::vector<std::string> sets;
  std::string text = input;
  for (size_t at; (at = text.find("\n#set ")) != std::string::npos;) {
    const size_t end = std::min(text.find('\n', at + 1), text.size());
    sets.push_back(text.substr(at + 6, end - at - 6));
    text.erase(at, end - at);
  }
  for (size_t at; (at = text.find("base")) != std::string::npos;) text[at] = '_';  // no file but this one is read
  put_file("fuzz.yaml", text);
  budget.begin_phase("YAML", (size_t{32} << 20) + 1024 * input.size());
  const RunConfig config = read_config(work_folder() + "/fuzz.yaml", sets);
  require(echo(parse_config(echo(config))) == echo(config), "YAML: the echo reads back as another config");
  check_config(config, 2);
}

}  // namespace

const std::vector<Target> kTextTargets = {
    {"tokenizer", 4096, tokenizer_seeds, mutate_tokenizer, run_tokenizer},
    {"tokenizer_config", 4096, tokenizer_config_seeds, mutate_plain_json, run_tokenizer_config},
    {"csv", 4096, csv_seeds, mutate_csv, run_csv},
    {"jsonl", 8192, jsonl_seeds, mutate_jsonl, run_jsonl},
    {"chat_template", 8192, template_seeds, mutate_template, run_template},
    {"vision_config", 8192, vision_config_seeds, mutate_vision_config, run_vision_config},
    {"yaml", 6144, yaml_seeds, mutate_yaml, run_yaml},
};

}  // namespace hanok::fuzz
