#include "trainer/weights.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "dataio/file_lock.h"
#include "dataio/tensor_store.h"
#include "model/hf/name_map.h"
#include "tests/dataio/temp_folder.h"
#include "tests/model/tiny.h"
#include "tests/support/errors.h"
#include "trainer/weight_parts.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

struct Layout {
  int tp = 1, dp = 1;
  bool sequence = false;
  int pp = 1;
  const char* schedule = "1f1b";
  int ep = 1, etp = 1;
};

/// Runs `body` on every rank of a layout, as threads.
void on_layout(const Layout& layout, const std::function<void(const Groups&)>& body) {
  const Mesh mesh(MeshShape{.pp = layout.pp, .dp = layout.dp, .tp = layout.tp, .ep = layout.ep, .etp = layout.etp});
  run_on_threads(
      mesh.world(), [&](World& world) { body(make_groups(world, mesh, layout.sequence)); }, 60);
}

ModelConfig config_of(bool tied) {
  ModelConfig config = tiny_config();
  config.decoder.tied = tied;
  return config;
}

/// A folder of a randomly initialised model, written by one rank.
void write_folder(const std::string& folder,
                  const ModelConfig& config,
                  at::ScalarType dtype,
                  const ExportOptions& options = {}) {
  const Groups groups = make_single_groups();
  Vlm model(config, groups, dtype, at::kCPU);
  randomise(model, 7);
  export_model(model, folder, options);
}

std::map<std::string, Tensor> tensors_of(const std::string& folder) {
  const WeightFolder weights(folder);
  std::map<std::string, Tensor> out;
  for (const std::string& name : weights.names()) out[name] = weights.view(name).clone();
  return out;
}

void write_tensors(const std::string& folder, const std::map<std::string, Tensor>& tensors) {
  std::vector<TensorPlan> plans;
  for (const auto& [name, value] : tensors) plans.push_back({name, value.scalar_type(), value.sizes().vec()});
  write_safetensors(
      folder + "/model.safetensors", plans, {}, [&](const std::string& name) { return tensors.at(name); });
}

void expect_same_bits(const std::map<std::string, Tensor>& got, const std::map<std::string, Tensor>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (const auto& [name, value] : expected) {
    ASSERT_TRUE(got.count(name)) << name;
    const Tensor& other = got.at(name);
    ASSERT_EQ(other.scalar_type(), value.scalar_type()) << name;
    ASSERT_EQ(other.sizes(), value.sizes()) << name;
    EXPECT_EQ(std::memcmp(other.const_data_ptr(), value.const_data_ptr(), value.nbytes()), 0) << name;
  }
}

const std::vector<Layout> kLayouts = {{1, 1},
                                      {2, 1},
                                      {2, 1, true},
                                      {4, 1},
                                      {4, 1, true},
                                      {1, 2},
                                      {2, 2},
                                      {1, 1, false, 2},
                                      {2, 1, true, 2, "zb-v"},
                                      {1, 1, false, 4}};

TEST(Weights, ImportFollowedByExportIsTheSameBitsUnderEveryLayout) {
  for (const bool tied : {true, false}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const TempFolder temp;
      const ModelConfig config = config_of(tied);
      write_folder(temp / "a", config, dtype);
      const auto expected = tensors_of(temp / "a");
      EXPECT_EQ(expected.count("lm_head.weight"), tied ? 0u : 1u);
      for (const Layout& layout : kLayouts) {
        on_layout(layout, [&](const Groups& groups) {
          Vlm model(config, groups, dtype, at::kCPU, {.schedule = layout.schedule});
          for (Param& param : model.params()) param.value.detach().fill_(99);
          load_weights(model, temp / "a");
          export_model(model, temp / "b", {.source_folder = temp / "a"});
        });
        expect_same_bits(tensors_of(temp / "b"), expected);
      }
    }
  }
}

TEST(Weights, ExpertsComeAndGoInEveryLayoutOfFoldersUnderEveryCut) {
  const std::vector<Layout> cuts = {{.dp = 2, .ep = 2},
                                    {.dp = 4, .ep = 4},
                                    {.tp = 2, .dp = 2, .ep = 2},
                                    {.dp = 2, .etp = 2},
                                    {.dp = 3, .etp = 3},
                                    {.tp = 2, .dp = 2, .ep = 2, .etp = 2},
                                    {.dp = 2, .pp = 2, .etp = 2}};
  for (const std::string_view on_disk : kExpertLayouts) {
    const TempFolder temp;
    ModelConfig config = config_of(false);
    config.decoder.type = "qwen3_moe";
    config.decoder.experts = 4;
    config.decoder.experts_per_token = 2;
    config.decoder.expert_ffn = 6;
    config.experts_on_disk = on_disk;
    write_folder(temp / "a", config, at::kFloat);
    const auto expected = tensors_of(temp / "a");
    for (const Layout& layout : cuts) {
      on_layout(layout, [&](const Groups& groups) {
        Vlm model(config, groups, at::kFloat, at::kCPU, {.schedule = layout.schedule});
        for (Param& param : model.params()) param.value.detach().fill_(99);
        load_weights(model, temp / "a");
        export_model(model, temp / "b", {.source_folder = temp / "a"});
      });
      expect_same_bits(tensors_of(temp / "b"), expected);
    }
  }
}

TEST(Weights, ItIsKnownInWhichLayoutsTransformersFindsExperts) {  // conversion_mapping.py of transformers 5.17
  ModelConfig config = config_of(false);
  EXPECT_TRUE(transformers_finds_experts(config));
  config.decoder.type = "qwen3_moe";
  const auto found = [&](const char* family) {
    std::string out;
    config.family = family;
    for (const char* layout : {"auto", "fused_in_out", "fused_out_in", "separate"}) {
      config.experts_on_disk = layout;
      out += transformers_finds_experts(config) ? '1' : '0';
    }
    return out;
  };
  EXPECT_EQ(found("qwen3_vl_moe"), "1110");
  EXPECT_EQ(found("qwen3_moe"), "1011");
}

TEST(Weights, EveryRankHoldsItsSliceOfTheGlobalTensor) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  const Groups single = make_single_groups();
  Vlm whole(config, single, at::kFloat, at::kCPU);
  load_weights(whole, temp / "a");
  on_layout({4, 1}, [&](const Groups& groups) {
    Vlm model(config, groups, at::kFloat, at::kCPU);
    load_weights(model, temp / "a");
    for (size_t i = 0; i < model.params().size(); ++i) {
      const Param& param = model.params()[i];
      const Tensor flat = whole.params()[i].value.detach().reshape({-1}), local = param.value.detach().reshape({-1});
      for (const FlatRun& run : flat_runs(param.spec, groups))
        EXPECT_TRUE(at::equal(local.narrow(0, run.local_begin, run.size), flat.narrow(0, run.global_begin, run.size)))
            << param.spec.name;
    }
  });
}

TEST(Weights, DtypesOfTheSourceAreKeptTensorByTensor) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kBFloat16);
  auto tensors = tensors_of(temp / "a");
  // A folder that mixes dtypes, and holds a tensor that the model ignores or knows in another place.
  tensors["model.language_model.norm.weight"] = tensors["model.language_model.norm.weight"].to(at::kFloat);
  tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone();
  write_tensors(temp / "a", tensors);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    on_layout({2, 1}, [&](const Groups& groups) {
      Vlm model(config, groups, dtype, at::kCPU);
      load_weights(model, temp / "a");
      export_model(model, temp / "b", {.source_folder = temp / "a"});
    });
    expect_same_bits(tensors_of(temp / "b"), tensors);
  }
}

TEST(Weights, ShardsAreFilledInOrderUpToTheLimit) {
  const TempFolder temp;
  const ModelConfig config = config_of(false);
  write_folder(temp / "one", config, at::kFloat);
  write_folder(temp / "many", config, at::kFloat, {.max_shard_bytes = 10000});
  EXPECT_FALSE(fs::exists(temp / "many/model.safetensors"));
  EXPECT_FALSE(fs::exists(temp / "one/model.safetensors.index.json"));
  const auto tensors = tensors_of(temp / "one");
  expect_same_bits(tensors_of(temp / "many"), tensors);
  const Json index = Json::parse(read_file(temp / "many/model.safetensors.index.json"));
  int64_t bytes = 0, elements = 0;
  for (const auto& [name, value] : tensors) bytes += static_cast<int64_t>(value.nbytes()), elements += value.numel();
  EXPECT_EQ(index.at("metadata").at("total_size").get<int64_t>(), bytes);
  EXPECT_EQ(index.at("metadata").at("total_parameters").get<int64_t>(), elements);
  std::map<std::string, std::vector<std::string>> by_file;
  for (const auto& [name, file] : index.at("weight_map").items()) by_file[file.get<std::string>()].push_back(name);
  for (const auto& [file, names] : by_file) {
    int64_t size = 0;
    for (const std::string& name : names) size += static_cast<int64_t>(tensors.at(name).nbytes());
    EXPECT_TRUE(size <= 10000 || names.size() == 1) << file;
  }
  EXPECT_GT(by_file.size(), 5u);
  on_layout({2, 1}, [&](const Groups& groups) {
    Vlm model(config, groups, at::kFloat, at::kCPU);
    load_weights(model, temp / "many");
    export_model(model, temp / "again", {.source_folder = temp / "many", .max_shard_bytes = 10000});
  });
  expect_same_bits(tensors_of(temp / "again"), tensors);
}

TEST(Weights, MissingAndUnexpectedTensorsAreListed) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  auto tensors = tensors_of(temp / "a");
  tensors["model.visual.extra.weight"] = at::zeros({2});
  tensors.erase("model.language_model.norm.weight");
  write_tensors(temp / "a", tensors);
  const Groups groups = make_single_groups();
  Vlm model(config, groups, at::kFloat, at::kCPU);
  const Error error = error_of([&] { load_weights(model, temp / "a"); });
  EXPECT_ERROR(error, ErrorKind::kCheckpoint, "model.visual.extra.weight");
  EXPECT_ERROR(error, ErrorKind::kCheckpoint, "model.language_model.norm.weight");
}

TEST(Weights, WrongShapeNamesTensorAndShapes) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  auto tensors = tensors_of(temp / "a");
  tensors["model.language_model.norm.weight"] = at::zeros({25});
  write_tensors(temp / "a", tensors);
  const Groups groups = make_single_groups();
  Vlm model(config, groups, at::kFloat, at::kCPU);
  EXPECT_ERROR(error_of([&] { load_weights(model, temp / "a"); }),
               ErrorKind::kShape,
               "model.language_model.norm.weight: got shape [25], expected [24]");
}

TEST(Weights, OnlyPlainFloatingPointWeightsAreRead) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  const auto tensors = tensors_of(temp / "a");
  const Groups groups = make_single_groups();
  Vlm model(config, groups, at::kFloat, at::kCPU);
  const std::pair<at::ScalarType, const char*> refused[] = {{at::kLong, "I64"},
                                                            {at::kInt, "I32"},
                                                            {at::kShort, "I16"},
                                                            {at::kChar, "I8"},
                                                            {at::kByte, "U8"},
                                                            {at::kBool, "BOOL"},
                                                            {at::kFloat8_e4m3fn, "F8_E4M3"},
                                                            {at::kFloat8_e5m2, "F8_E5M2"}};
  for (const auto& [dtype, name] : refused) {
    auto spoiled = tensors;
    spoiled["model.language_model.norm.weight"] = tensors.at("model.language_model.norm.weight").to(dtype);
    spoiled["model.language_model.norm.weight_scale_inv"] = at::ones({1});  // must not be what is told
    write_tensors(temp / "a", spoiled);
    const std::string text = message_of(ErrorKind::kCheckpoint, [&] { load_weights(model, temp / "a"); });
    EXPECT_EQ(
        text.find(concat("model.language_model.norm.weight: got dtype ", name, ", expected F64, F32, F16 or BF16")), 0u)
        << text;
    EXPECT_NE(text.find("quantised weights are not supported"), std::string::npos) << text;
  }
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}) {
    auto converted = tensors;
    converted["model.language_model.norm.weight"] = tensors.at("model.language_model.norm.weight").to(dtype);
    write_tensors(temp / "a", converted);
    EXPECT_NO_THROW(load_weights(model, temp / "a")) << c10::toString(dtype);
  }
  auto tied = tensors;
  tied["lm_head.weight"] = tensors.at("model.language_model.embed_tokens.weight").to(at::kByte);
  write_tensors(temp / "a", tied);
  EXPECT_ERROR(error_of([&] { load_weights(model, temp / "a"); }),
               ErrorKind::kCheckpoint,
               "lm_head.weight: got dtype U8, expected F64, F32, F16 or BF16");
}

TEST(Weights, PipesAreNoConfigAndNoWeights) {
  const TempFolder temp;
  fs::create_directories(temp / "a");
  ASSERT_EQ(mkfifo((temp / "a/config.json").c_str(), 0600), 0);
  ModelConfig config;
  config.path = temp / "a";
  EXPECT_ERROR(error_of([&] { read_model_folder(config); }),
               ErrorKind::kConfig,
               "config.json: got something that is not a file, expected the one of a Hugging Face folder");
}

TEST(Weights, StoredHeadOfATiedModelMustEqualTheEmbedding) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  auto tensors = tensors_of(temp / "a");
  tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone();
  write_tensors(temp / "a", tensors);
  const Groups groups = make_single_groups();
  Vlm model(config, groups, at::kFloat, at::kCPU);
  EXPECT_NO_THROW(load_weights(model, temp / "a"));
  tensors["lm_head.weight"][3][4] += 1;
  write_tensors(temp / "a", tensors);
  EXPECT_ERROR(error_of([&] { load_weights(model, temp / "a"); }),
               ErrorKind::kCheckpoint,
               "lm_head.weight: got values other than those of model.language_model.embed_tokens.weight");
  tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].to(at::kDouble);
  write_tensors(temp / "a", tensors);
  EXPECT_ERROR(error_of([&] { load_weights(model, temp / "a"); }),
               ErrorKind::kCheckpoint,
               "lm_head.weight: got values other than those of model.language_model.embed_tokens.weight");
}

TEST(Weights, SideFilesAreCopiedAsTheyAre) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  const std::map<std::string, std::string> files = {{"config.json", "{ \"odd\":   1}"},
                                                    {"generation_config.json", "{\"a\": [1]}"},
                                                    {"preprocessor_config.json", "{}"},
                                                    {"video_preprocessor_config.json", "{ }"},
                                                    {"tokenizer.json", "{\"x\": 2}"},
                                                    {"merges.txt", "a b\n"},
                                                    {"chat_template.jinja", "{{ x }}"},
                                                    {"LICENSE", "free"}};
  for (const auto& [name, text] : files) write_file_atomically(temp / "a/" + name, text);
  write_file_atomically(temp / "a/pytorch_model.bin", "pickle");
  write_file_atomically(temp / "a/notes.md", "x");
  write_file_atomically(temp / "a/model.safetensors.index.json.bak", "x");
  const Groups groups = make_single_groups();
  Vlm model(config, groups, at::kFloat, at::kCPU);
  load_weights(model, temp / "a");
  export_model(model, temp / "b", {.source_folder = temp / "a"});
  std::set<std::string> names = {"model.safetensors"};
  for (const auto& [name, text] : files) {
    EXPECT_EQ(read_file(temp / "b/" + name), text) << name;
    names.insert(name);
  }
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(temp / "b")) found.insert(entry.path().filename().string());
  EXPECT_EQ(found, names);

  fs::create_directories(temp / "tok");
  write_file_atomically(temp / "tok/vocab.json", "{}");
  export_model(model, temp / "c", {.source_folder = temp / "a", .tokenizer_folder = temp / "tok"});
  EXPECT_TRUE(fs::exists(temp / "c/vocab.json"));
  EXPECT_FALSE(fs::exists(temp / "c/tokenizer.json")) << "files of two tokenizers must not mix";
  EXPECT_EQ(read_file(temp / "c/chat_template.jinja"), "{{ x }}");
}

TEST(Weights, ExportOverItsOwnSourceIsRefused) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  const auto expected = tensors_of(temp / "a");
  const std::string config_json = read_file(temp / "a/config.json");
  fs::create_directory_symlink(temp / "a", temp / "link");
  on_layout({2, 1}, [&](const Groups& groups) {
    Vlm model(config, groups, at::kFloat, at::kCPU);
    load_weights(model, temp / "a");
    for (const char* target : {"a/", "link"})
      EXPECT_ERROR(error_of([&] { export_model(model, temp / target, {.source_folder = temp / "a"}); }),
                   ErrorKind::kConfig,
                   "export: got the folder of model.path as its target");
    EXPECT_ERROR(error_of([&] { export_model(model, temp / "a", {.tokenizer_folder = temp / "link"}); }),
                 ErrorKind::kConfig,
                 "export: got the folder of model.tokenizer as its target");
  });
  expect_same_bits(tensors_of(temp / "a"), expected);
  EXPECT_EQ(read_file(temp / "a/config.json"), config_json);
  EXPECT_FALSE(fs::exists(temp / "a.tmp"));
}

TEST(Weights, ExportReplacesNothingButWhatAnExportWrites) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  for (const std::string name : {"a", "source"}) write_folder(temp / name, config, at::kFloat);
  const auto refused = [&](const ExportOptions& options, const std::string& words) {
    const Groups groups = make_single_groups();
    Vlm model(config, groups, at::kFloat, at::kCPU);
    const std::string text = message_of(ErrorKind::kIo, [&] { export_model(model, temp / "a", options); });
    EXPECT_NE(text.find(words), std::string::npos) << text;
  };
  for (const std::string stranger : {"README.md", "notes.txt", "data.json", "adapter.safetensors", ".gitignore"}) {
    write_file_atomically(temp / ("a/" + stranger), "mine");
    refused({}, "(" + stranger + ")");
    EXPECT_EQ(read_file(temp / ("a/" + stranger)), "mine");
    fs::remove(temp / ("a/" + stranger));
  }
  fs::create_directories(temp / "a/config");
  refused({}, "(config)");
  fs::remove(temp / "a/config");
  fs::create_symlink(temp / "source/config.json", temp / "a/vocab.json");
  refused({}, "(vocab.json)");
  fs::remove(temp / "a/vocab.json");

  // A name that the source brings is one that an export writes.
  write_file_atomically(temp / "source/notes.txt", "of the model");
  write_folder(temp / "a", config, at::kFloat, {.source_folder = temp / "source"});
  write_folder(temp / "a", config, at::kFloat, {.source_folder = temp / "source"});
  EXPECT_EQ(read_file(temp / "a/notes.txt"), "of the model");
  refused({}, "(notes.txt)");
  fs::remove(temp / "a/notes.txt");

  fs::remove(temp / "a/model.safetensors");
  refused({}, "(settings without weights)");
  fs::remove_all(temp / "a");
  write_file_atomically(temp / "a", "");
  refused({}, "got a file as its target");
}

TEST(Weights, ExportRefusesADtypeThatValuesDoNotFitInto) {
  const TempFolder temp;
  const Groups groups = make_single_groups();
  Vlm model(config_of(true), groups, at::kFloat, at::kCPU);
  initialise(model, 3);
  export_model(model, temp / "small", {.dtype = at::kHalf});
  model.params().front().value.detach().view({-1})[0] = 1e5;
  const auto said = message_of(ErrorKind::kConfig, [&] { export_model(model, temp / "a", {.dtype = at::kHalf}); });
  EXPECT_NE(said.find("save.export_dtype: got float16 for model."), std::string::npos) << said;
  EXPECT_NE(said.find("the largest is 1e+05"), std::string::npos) << said;
  EXPECT_FALSE(fs::exists(temp / "a"));
  EXPECT_FALSE(fs::exists(temp / "a.tmp"));
  export_model(model, temp / "a", {.dtype = at::kBFloat16});
  EXPECT_TRUE(fs::exists(temp / "a/model.safetensors"));
}

TEST(Weights, ExportClearsWhatAnExportLeftAndNothingElse) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  const auto refused = [&] {
    const Groups groups = make_single_groups();
    Vlm model(config, groups, at::kFloat, at::kCPU);
    return message_of(ErrorKind::kIo, [&] { export_model(model, temp / "a", {}); }).find("a.tmp") != std::string::npos;
  };
  fs::create_directories(temp / "a.tmp/model");
  write_file_atomically(temp / "a.tmp/model/config.json", "mine");
  EXPECT_TRUE(refused());
  EXPECT_EQ(read_file(temp / "a.tmp/model/config.json"), "mine");
  write_file_atomically(temp / "a.tmp/.hanok_export", "");
  write_folder(temp / "a", config, at::kFloat);
  EXPECT_FALSE(fs::exists(temp / "a.tmp"));
  {
    fs::create_directories(temp / "a.tmp/model");
    write_file_atomically(temp / "a.tmp/model/config.json", "another export's");
    const auto another = FileLock::of_removed_file(temp / "a.tmp/.hanok_export");
    EXPECT_TRUE(refused());
    EXPECT_EQ(read_file(temp / "a.tmp/model/config.json"), "another export's");
  }
  write_folder(temp / "a", config, at::kFloat);
  EXPECT_FALSE(fs::exists(temp / "a.tmp"));
  write_file_atomically(temp / "a.tmp", "mine");
  EXPECT_TRUE(refused());
  EXPECT_EQ(read_file(temp / "a.tmp"), "mine");
  fs::remove(temp / "a.tmp");
  fs::create_directory_symlink(temp / "a", temp / "a.tmp");
  EXPECT_TRUE(refused());
  fs::remove(temp / "a.tmp");
  fs::create_directory(temp / "a.tmp");  // killed before it wrote its mark
  write_folder(temp / "a", config, at::kFloat);
  EXPECT_FALSE(fs::exists(temp / "a.tmp"));
}

TEST(Weights, FolderThatHoldsSomethingElseIsNotReplaced) {
  const TempFolder temp;
  fs::create_directories(temp / "photos");
  write_file_atomically(temp / "photos/1.jpg", "x");
  std::atomic<int> refused{0};
  on_layout({2, 2}, [&](const Groups& groups) {
    Vlm model(config_of(true), groups, at::kFloat, at::kCPU);
    const Error error = error_of([&] { export_model(model, temp / "photos", {}); });
    EXPECT_ERROR(error, ErrorKind::kIo, "export: got a folder that holds something else");
    if (error.kind() == ErrorKind::kIo) ++refused;
  });
  EXPECT_EQ(refused, 4) << "every rank must hear of it";
  EXPECT_EQ(read_file(temp / "photos/1.jpg"), "x");
}

TEST(Weights, FullDiskLeavesTheEarlierFolderAndIsToldToEveryRank) {
  const TempFolder temp;
  const ModelConfig config = config_of(true);
  write_folder(temp / "a", config, at::kFloat);
  const auto expected = tensors_of(temp / "a");
  signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small{20000, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  std::atomic<int> refused{0};
  on_layout({2, 2}, [&](const Groups& groups) {
    Vlm model(config, groups, at::kFloat, at::kCPU);
    randomise(model, 8);
    if (error_of([&] { export_model(model, temp / "a", {}); }).kind() == ErrorKind::kIo) ++refused;
  });
  setrlimit(RLIMIT_FSIZE, &old_limit);
  EXPECT_EQ(refused, 4);
  expect_same_bits(tensors_of(temp / "a"), expected);
  EXPECT_FALSE(fs::exists(temp / "a.tmp"));
}

TEST(Weights, StretchesAreGatheredFromWhatRanksSpeakForWhateverTheCut) {
  // Segments of 12, 2 and 2 units, the last two replicated from tp 4 on; the stretch begins and ends inside of them.
  for (const int cut_dim : {-1, 0, 1}) {
    for (const int tp : {1, 2, 4}) {
      ParamSpec spec{.name = "w", .shape = {36, 36}, .cut_dim = cut_dim};
      if (cut_dim >= 0) spec.segments = {{24, 2}, {4, 2}, {8, 4}};
      const HfPart part{.name = "x", .shape = {20, 36}, .dim = 0, .begin = 10, .size = 20};
      const Tensor global = at::arange(36 * 36).view({36, 36});
      Tensor gathered = at::full({20, 36}, -1), times = at::zeros({20, 36}, at::kLong);
      for (int rank = 0; rank < tp; ++rank) {
        Tensor local = at::empty(local_shape(spec, rank, tp), at::kLong);
        for (const FlatRun& run : flat_runs(spec, rank, tp))
          local.view(-1)
              .narrow(0, run.local_begin, run.size)
              .copy_(global.view(-1).narrow(0, run.global_begin, run.size));
        for (const Overlap& overlap : overlaps(spec, part, {rank, tp}, true)) {
          part_view(gathered, overlap).copy_(local_view(local, part, overlap));
          part_view(times, overlap) += 1;
        }
        Tensor loaded = local.clone().fill_(-1);
        for (const Overlap& overlap : overlaps(spec, part, {rank, tp}, false))
          local_view(loaded, part, overlap).copy_(part_view(global.narrow(0, 10, 20), overlap));
        EXPECT_TRUE(loaded.eq(local).logical_or(loaded.eq(-1)).all().item<bool>())
            << "cut " << cut_dim << ", tp " << tp;
        EXPECT_GT(loaded.ne(-1).sum().item<int64_t>(), 0);
      }
      EXPECT_TRUE(at::equal(gathered, global.narrow(0, 10, 20))) << "cut " << cut_dim << ", tp " << tp;
      EXPECT_TRUE(at::equal(times, at::ones_like(times)))
          << "an element without one speaker: cut " << cut_dim << ", tp " << tp;
    }
  }
}

}  // namespace
}  // namespace hanok
