#include "configs/schema/read.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "configs/schema/check.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

class Read : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / concat("hanok_read_test_", static_cast<int64_t>(getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << text;
    return (folder_ / name).string();
  }
  /// The message of the error that reading `text` raises; empty if it raises none.
  std::string fault_of(const std::string& text, const std::vector<std::string>& sets = {}) const {
    return fault_of_file(write("run.yaml", text), sets);
  }
  static std::string fault_of_file(const std::string& file, const std::vector<std::string>& sets = {}) {
    try {
      read_config(file, sets);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kConfig) << error.what();
      return error.what();
    }
    return "";
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::filesystem::path folder_;
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
#define EXPECT_HAS(text, part) \
  EXPECT_TRUE(has(text, part)) << "got: " << (text) << "\nexpected it to contain: " << (part)

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> out;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(HANOK_SOURCE_DIR) / "configs" / folder))
    if (entry.path().extension() == ".yaml") out.push_back(entry.path().string());
  return out;
}

TEST_F(Read, DefaultsHoldWhereNothingIsSaid) {
  const RunConfig config = read_config(write("run.yaml", ""), {});
  EXPECT_EQ(config.out, "runs/run");
  EXPECT_EQ(config.optimizer.lr, OptimizerConfig{}.lr);
  EXPECT_TRUE(config.stages.empty());
}

TEST_F(Read, UnknownKeyNamesTheNearestOneWithFileAndLine) {
  const std::string fault = fault_of("name: a\noptimizer:\n  lrr: 1e-3\n");
  EXPECT_EQ(fault, "optimizer.lrr: unknown key; did you mean optimizer.lr?; " + path("run.yaml") + ":3");
}

TEST_F(Read, KeyOfAnotherGroupIsPointedTo) {
  EXPECT_HAS(fault_of("weight_decay: 0.1\n"), "weight_decay: unknown key; did you mean optimizer.weight_decay?");
}

TEST_F(Read, FarFetchedKeyListsTheKnownOnes) {
  EXPECT_HAS(fault_of("save:\n  zzzzzzzzzz: 1\n"), "save.zzzzzzzzzz: unknown key, expected one of [every, keep, best,");
}

TEST_F(Read, WrongTypesSayWhatWasExpected) {
  EXPECT_HAS(fault_of("seed: many\n"), "seed: got many, expected a whole number; ");
  EXPECT_HAS(fault_of("seed: 1.5\n"), "seed: got 1.5, expected a whole number");
  EXPECT_HAS(fault_of("seed:\n"), "seed: got nothing, expected a whole number");
  EXPECT_HAS(fault_of("optimizer: {lr: fast}\n"), "optimizer.lr: got fast, expected a number");
  EXPECT_HAS(fault_of("optimizer: {lr: 1e-3x}\n"), "optimizer.lr: got 1e-3x, expected a number");
  EXPECT_HAS(fault_of("optimizer: {lr: .inf}\n"), "optimizer.lr: got .inf, expected a number");
  EXPECT_HAS(fault_of("optimizer: {lr: inf}\n"), "optimizer.lr: got inf, expected a number");
  EXPECT_HAS(fault_of("optimizer: {lr: nan}\n"), "optimizer.lr: got nan, expected a number");
  EXPECT_HAS(fault_of("save: {best: maybe}\n"), "save.best: got maybe, expected true or false");
  EXPECT_HAS(fault_of("name: [a]\n"), "name: got a list, expected text");
  EXPECT_HAS(fault_of("name: {a: 1}\n"), "name: got a mapping of keys, expected text");
  EXPECT_HAS(fault_of("save: 3\n"), "save: got 3, expected a mapping of keys");
  EXPECT_HAS(fault_of("stages: {a: 1}\n"), "stages: got a mapping of keys, expected a list");
  EXPECT_HAS(fault_of("data: {sets: 3}\n"), "data.sets: got 3, expected a mapping of names");
  EXPECT_HAS(fault_of("data: {sets: {a.b: {}}}\n"), "data.sets: got the name \"a.b\", expected one without dots");
  EXPECT_HAS(fault_of("- a\n- b\n"), "config: got a list, expected a mapping of keys");
}

TEST_F(Read, NumbersAreReadInEveryUsualSpelling) {
  const RunConfig config = read_config(write("run.yaml",
                                             "seed: 4e3\n"
                                             "optimizer: {lr: +1e-3, weight_decay: 1}\n"
                                             "save: {best: no}\n"
                                             "stages: [{tokens: 67e9, seq_len: '128'}]\n"),
                                       {});
  EXPECT_EQ(config.seed, 4000);
  EXPECT_EQ(config.optimizer.lr, 1e-3);
  EXPECT_EQ(config.optimizer.weight_decay, 1);
  EXPECT_FALSE(config.save.best);
  EXPECT_EQ(config.stages[0].tokens, 67e9);
  EXPECT_EQ(config.stages[0].seq_len, 128);
}

TEST_F(Read, ValuesOutOfRangeAndUnknownChoicesAreRefused) {
  EXPECT_HAS(fault_of("save: {keep: 0}\n"), "save.keep: got 0, expected at least 1");
  EXPECT_HAS(fault_of("data: {max_bad_share: 1.5}\n"), "data.max_bad_share: got 1.5, expected at most 1");
  // What would leave 64 bits as steps or nanoseconds.
  EXPECT_HAS(fault_of("stages: [{epochs: 1e19}]\n"), "stages.0.epochs: got 1e+19, expected at most 1e+06");
  EXPECT_HAS(fault_of("stages: [{tokens: 1e300}]\n"), "stages.0.tokens: got 1e+300, expected at most 1e+18");
  EXPECT_HAS(fault_of("stages: [{steps: 9223372036854775807}]\n"), ", expected at most 1e+12");
  EXPECT_HAS(fault_of("stages: [{mixture: {a: 1e308}}]\n"), "stages.0.mixture.a: got 1e+308, expected at most 1e+12");
  EXPECT_HAS(fault_of("optimizer: {warmup_tokens: 1e300}\n"), "optimizer.warmup_tokens: got 1e+300, expected at most");
  EXPECT_HAS(fault_of("optimizer: {warmup_tokens: 9223372036854775807}\n"), ", expected at most 1e+18");
  EXPECT_HAS(fault_of("optimizer: {warmup_steps: 9223372036854775807}\n"), ", expected at most 1e+12");
  EXPECT_HAS(fault_of("log: {stall_timeout_s: 1e300}\n"), "log.stall_timeout_s: got 1e+300, expected at most 1e+08");
  EXPECT_HAS(fault_of("eval: {rows: 9223372036854775807}\n"), "eval.rows: got 9223372036854775807, expected at most");
  EXPECT_HAS(fault_of("device: gpu\n"), "device: got gpu, expected one of [auto, cpu, cuda]");
  EXPECT_HAS(fault_of("optimizer: {schedule: cosin}\n"), "did you mean cosine?");
}

TEST_F(Read, EveryFaultIsToldAtOnceAndInheritedOnesOnce) {
  const std::string fault = fault_of(
      "seed: many\n"
      "optimizer: {lrr: 1, clip_norm: -1}\n"
      "stages:\n"
      "- {name: a, seq_len: 1}\n"
      "- {name: b, optimizer: {beta1: 2}}\n");
  EXPECT_HAS(fault, "5 faults in the config:\n  seed: got many");
  EXPECT_HAS(fault, "\n  optimizer.lrr: unknown key");
  EXPECT_HAS(fault, "\n  optimizer.clip_norm: got -1, expected at least 0");
  EXPECT_HAS(fault, "\n  stages.0.seq_len: got 1, expected at least 2");
  EXPECT_HAS(fault, "\n  stages.1.optimizer.beta1: got 2, expected at most 1");
}

TEST_F(Read, KeyWrittenTwiceIsRefusedWithBothPlaces) {
  EXPECT_EQ(fault_of("seed: 1\nname: a\nseed: 2\n"),
            concat("seed: got the key twice, expected once; ",
                   path("run.yaml"),
                   ":1 and ",
                   path("run.yaml"),
                   ":3",
                   "; remove one"));
}

TEST_F(Read, BrokenYamlNamesTheLine) {
  EXPECT_HAS(fault_of("name: a\nsave: [1, 2\n"), path("run.yaml") + ":");
  EXPECT_HAS(fault_of("name: a\nsave: [1, 2\n"), ": not YAML: ");
  EXPECT_HAS(fault_of("a: &x [*x]\n"), "nesting: got more levels");
  std::string bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n";
  for (char c = 'b'; c < 'k'; ++c) {
    const std::string one = concat("*", static_cast<char>(c - 1), ",");
    bomb += concat(c, ": &", c, " [", one, one, one, one, one, one, one, one, one, one, "]\n");
  }
  EXPECT_HAS(fault_of("name: \"a\\0b\"\n"), "value: got a zero byte in a text, expected none; ");
  EXPECT_HAS(fault_of(bomb), "do aliases multiply each other?");
  EXPECT_HAS(fault_of("name: a\n---\nname: b\n"), "got 2 YAML documents in one file");
  for (const char* endless : {",", ", a\n", "{name: a}, b\n"})
    EXPECT_HAS(fault_of(endless), "a comma outside of lists");
}

TEST_F(Read, MissingFileIsAConfigError) {
  EXPECT_HAS(message_of(ErrorKind::kConfig, [&] { read_config(path("absent.yaml"), {}); }),
             "expected a YAML file; " + path("absent.yaml"));
}

TEST_F(Read, BaseFilesAreMergedUnderTheKeysOfTheFile) {
  write("base/model.yaml", "decoder: {layers: 2, hidden: 64}\ntaps: [1, 2]\n");
  write("base/more.yaml", "decoder: {hidden: 96, heads: 4}\n");
  write("stage.yaml", "name: align\nseq_len: 256\n");
  const std::string file = write("run.yaml",
                                 "model:\n"
                                 "  base: [base/model.yaml, base/more.yaml]\n"
                                 "  decoder: {heads: 8}\n"
                                 "  taps: [0]\n"
                                 "stages:\n"
                                 "- {base: stage.yaml, seq_len: 512}\n"
                                 "- {name: b}\n");
  const RunConfig config = read_config(file, {});
  EXPECT_EQ(config.model.decoder.layers, 2);
  EXPECT_EQ(config.model.decoder.hidden, 96);
  EXPECT_EQ(config.model.decoder.heads, 8);
  EXPECT_EQ(config.model.taps, std::vector<int64_t>{0});
  EXPECT_EQ(config.stages[0].name, "align");
  EXPECT_EQ(config.stages[0].seq_len, 512);
  EXPECT_EQ(config.stages[1].seq_len, StageConfig{}.seq_len);
}

TEST_F(Read, FaultInABaseFileNamesThatFile) {
  write("base.yaml", "name: a\n\nsede: 1\n");
  EXPECT_EQ(fault_of("base: base.yaml\nout: x\n"),
            "sede: unknown key; did you mean seed?; " + path("base.yaml") + ":3");
}

TEST_F(Read, BasesInACircleAreRefused) {
  write("a.yaml", "base: b.yaml\n");
  write("b.yaml", "base: a.yaml\n");
  EXPECT_HAS(fault_of_file(path("a.yaml")), "base: got files that include each other");
  EXPECT_HAS(fault_of("base: {a: 1}\n"), "base: got something else, expected the path of a YAML file");
}

TEST_F(Read, SetReachesGroupsAndListElementsByIndexAndByName) {
  const std::string file = write("run.yaml",
                                 "optimizer: {lr: 1e-3}\n"
                                 "stages:\n"
                                 "- {name: align, steps: 5}\n"
                                 "- {name: all, steps: 6}\n");
  const RunConfig config = read_config(file,
                                       {"stages.all.steps=7",
                                        "stages.0.trainable=[\"connector.**\"]",
                                        "seed=9",
                                        "optimizer.clip_norm=0.5",
                                        "data.sets.train.path=a=b.csv",
                                        "model.path=",
                                        "stages.align.optimizer.lr=2e-3",
                                        "model.taps=[1, 2]"});
  EXPECT_EQ(config.stages[0].steps, 5);
  EXPECT_EQ(config.stages[1].steps, 7);
  EXPECT_EQ(config.stages[0].trainable, std::vector<std::string>{"connector.**"});
  EXPECT_EQ(config.seed, 9);
  EXPECT_EQ(config.data.sets.at("train").path, "a=b.csv");
  EXPECT_EQ(config.stages[0].optimizer.lr, 2e-3);
  EXPECT_EQ(config.stages[1].optimizer.lr, 1e-3);
  EXPECT_EQ(config.stages[0].optimizer.clip_norm, 0.5);
  EXPECT_EQ(config.model.taps, (std::vector<int64_t>{1, 2}));
}

TEST_F(Read, SetOfAnUnknownKeyOrElementNamesTheNearest) {
  const std::string text = "stages:\n- {name: align}\n- {name: all}\n";
  EXPECT_EQ(fault_of(text, {"optimiser.lr=1"}),
            "optimiser: unknown key; did you mean optimizer?; --set optimiser.lr=1");
  EXPECT_EQ(fault_of(text, {"stages.all.step=1"}),
            "stages.1.step: unknown key; did you mean stages.1.steps?; --set stages.all.step=1");
  EXPECT_EQ(fault_of(text, {"stages.alin.steps=1"}),
            "alin: got this element, expected an index below 2 or one of the names [align, all]; did you mean align?; "
            "--set stages.alin.steps=1");
  EXPECT_HAS(fault_of(text, {"stages.2.steps=1"}), "2: got this element, expected an index below 2");
  EXPECT_EQ(fault_of(text, {"seed=x"}), "seed: got x, expected a whole number; --set seed=x");
}

TEST_F(Read, SetInAWrongFormSaysTheRightOne) {
  for (const char* set : {"seed", "=3", "a..b=3", ".seed=1"})
    EXPECT_HAS(fault_of("", {set}), "expected KEY=VALUE; for example --set optimizer.lr=1e-4");
  EXPECT_HAS(fault_of("seed: 1\n", {"seed.x=1"}), "seed: got the value 1, expected a group of keys; --set seed.x=1");
  EXPECT_HAS(fault_of("", {"seed=[1"}), "--set seed=[1:1: not YAML");
  EXPECT_HAS(fault_of("", {"model.base=x.yaml"}), "base is for files only");
}

TEST_F(Read, StagesStartFromTheTopLevelOptimizerAndLayout) {
  const RunConfig config = read_config(write("run.yaml",
                                             "optimizer: {lr: 1e-3, schedule: linear, no_decay: [a, b]}\n"
                                             "parallel: {tp: 2}\n"
                                             "stages:\n"
                                             "- {name: a}\n"
                                             "- {name: b, optimizer: {lr: 2e-3, no_decay: [c]}, parallel: {dp: 3}}\n"),
                                       {});
  EXPECT_EQ(config.stages[0].optimizer.lr, 1e-3);
  EXPECT_EQ(config.stages[0].parallel.tp, 2);
  EXPECT_EQ(config.stages[1].optimizer.lr, 2e-3);
  EXPECT_EQ(config.stages[1].optimizer.schedule, "linear");
  EXPECT_EQ(config.stages[1].optimizer.no_decay, std::vector<std::string>{"c"});
  EXPECT_EQ(config.stages[1].parallel.tp, 2);
  EXPECT_EQ(config.stages[1].parallel.dp, 3);
}

TEST_F(Read, EchoReadsBackAsTheSameConfig) {
  RunConfig config;
  config.name = "quotes \" and \\ and \n and \x01 and \xED\x95\x9C: # [x]";
  config.model.tokenizer = "null";
  config.model.path = "~";
  config.optimizer.lr = 0.1 + 0.2;
  config.optimizer.groups = {{"decoder.**", 0.5, 0}, {"**", 1e-300, -1}};
  config.data.sets = {{"a b", {.path = "x.csv", .prompt = "{question}\n{a}"}}, {"c", {}}};
  config.stages = {StageConfig{}, StageConfig{}};
  config.stages[1].mixture = {{"a b", 0.25}, {"true", 1.0 / 3}};
  config.stages[1].trainable = {};
  config.eval.metric = "accuracy";
  const RunConfig back = parse_config(echo(config));
  EXPECT_EQ(flatten(back), flatten(config));
  EXPECT_EQ(echo(back), echo(config));
  EXPECT_EQ(config_hash(back), config_hash(config));
}

TEST_F(Read, EchoHoldsEveryKey) {
  RunConfig config;
  config.stages.resize(1);
  config.stages[0].optimizer.groups.resize(1);
  config.optimizer.groups.resize(1);
  config.data.sets["NAME"];
  config.stages[0].mixture["NAME"] = 1;
  const std::string text = echo(config);
  for (const std::string& key : known_keys()) {
    const std::string leaf = key.substr(key.rfind('.') + 1);
    EXPECT_HAS(text, leaf == "NAME" ? "\"NAME\":" : leaf + ":");
    EXPECT_HAS(key_reference(), "| `" + key + "` |");
  }
}

TEST_F(Read, HashFollowsEveryLeafAndDifferencesNameIt) {
  RunConfig was, is;
  was.stages.resize(1);
  is = was;
  EXPECT_EQ(config_hash(was), config_hash(is));
  EXPECT_TRUE(differences(was, is, {}).empty());
  is.stages[0].optimizer.lr = 0.25;
  is.out = "elsewhere";
  is.log.every = 7;
  EXPECT_NE(config_hash(was), config_hash(is));
  EXPECT_EQ(differences(was, is, {"out", "log."}),
            std::vector<std::string>{"stages.0.optimizer.lr: was 1e-04, is 0.25"});
  EXPECT_EQ(differences(was, is, {"lo", "ou", "stages"}).size(), 2u) << "a prefix is whole components";
}

TEST_F(Read, KeysFileIsWhatTheSchemaSays) {
  std::ostringstream text;
  text << std::ifstream(HANOK_SOURCE_DIR "/configs/keys.md").rdbuf();
  EXPECT_TRUE(text.str().ends_with("\n\n" + key_reference())) << "run build/tests/configs/keys_probe > configs/keys.md";
}

TEST_F(Read, EveryShippedFileIsValid) {
  for (const std::string& file : files_in("run")) {
    const RunConfig config = read_config(file, {"model.path=x"});
    EXPECT_NO_THROW(check_config(config, 0)) << file;
  }
  for (const std::string& file : files_in("model")) {
    const ModelConfig model = read_model_config(file);
    EXPECT_NO_THROW(check_model(model, ParallelConfig{})) << file;
  }
  for (const std::string& file : files_in("stage")) {
    RunConfig config = read_config(write("run.yaml", "stages: [{base: " + file + "}]\n"), {});
    EXPECT_EQ(config.stages[0].name, std::filesystem::path(file).stem().string()) << file;
  }
}

}  // namespace
}  // namespace hanok
