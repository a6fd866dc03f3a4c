#include "trainer/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "configs/schema/read.h"
#include "dataio/tensor_store.h"
#include "parallel/init.h"
#include "tests/dataio/temp_folder.h"
#include "tests/model/tiny.h"
#include "tests/support/errors.h"
#include "trainer/checkpoint_pieces.h"
#include "trainer/checkpoint_state.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

struct Layout {
  const char* name;
  int tp, dp;
  bool sequence = false;
  int pp = 1;
  const char* schedule = "1f1b";
  int ep = 1, etp = 1;
};
const std::vector<Layout> kLayouts = {{"one", 1, 1},
                                      {"tp2", 2, 1},
                                      {"tp4", 4, 1},
                                      {"tp4 sequence", 4, 1, true},
                                      {"dp2", 1, 2},
                                      {"dp3", 1, 3},
                                      {"tp2 dp2", 2, 2},
                                      {"tp2 dp2 sequence", 2, 2, true},
                                      {"pp2", 1, 1, false, 2},
                                      {"pp4", 1, 1, false, 4},
                                      {"pp2 zb-v dp2", 1, 2, false, 2, "zb-v"},
                                      {"pp2 interleaved tp2", 2, 1, true, 2, "interleaved"}};
const std::vector<Layout> kExpertLayouts = {{"one", 1, 1},
                                            {"dp2 ep2", 1, 2, false, 1, "1f1b", 2},
                                            {"dp4 ep2", 1, 4, false, 1, "1f1b", 2},
                                            {"dp4 ep4", 1, 4, false, 1, "1f1b", 4},
                                            {"tp2 ep2 sequence", 2, 1, true, 1, "1f1b", 2},
                                            {"dp2 etp2", 1, 2, false, 1, "1f1b", 1, 2},
                                            {"tp2 dp2 ep2 etp2", 2, 2, false, 1, "1f1b", 2, 2},
                                            {"pp2 dp2 ep2", 1, 2, false, 2, "zb-v", 2},
                                            {"dp3", 1, 3}};

void on_layout(const Layout& layout, const std::function<void(const Groups&)>& body) {
  const Mesh mesh(MeshShape{.pp = layout.pp, .dp = layout.dp, .tp = layout.tp, .ep = layout.ep, .etp = layout.etp});
  run_on_threads(
      mesh.world(), [&](World& world) { body(make_groups(world, mesh, layout.sequence)); }, 60);
}

RunConfig run_config(const std::string& out) {
  RunConfig config;
  config.out = out;
  config.stages.resize(2);
  config.stages[0].name = "align";
  config.stages[1].name = "all";
  config.save.keep = 2;
  return config;
}

/// Model, gradients and optimizer of one rank. The tower is frozen: it has no optimizer state.
struct Rank {
  Rank(const Groups& groups,
       at::ScalarType dtype,
       uint64_t seed,
       const ModelConfig& config = tiny_config(),
       const char* schedule = "1f1b")
      : groups(groups), model(config, groups, dtype, at::kCPU, {.schedule = schedule}) {
    initialise(model, seed);
    for (ParamTable* table : {&model.params(), &model.whole()})
      for (Param& param : *table) param.trainable = !param.spec.name.starts_with("tower.");
    grads.emplace(model.params(), groups, at::kFloat);
    optimizer.emplace(OptimizerConfig{}, model.params(), *grads);
  }
  ShardBuffers buffers() { return shard_buffers(*optimizer); }

  Groups groups;
  Vlm model;
  std::optional<GradSync> grads;
  std::optional<AdamW> optimizer;
};

/// A value for every element of every buffer that depends on its place in the global tensor alone, exact in f32.
Tensor expected_state(const std::string& param, size_t buffer, int64_t begin, int64_t size) {
  const Tensor index = at::arange(begin, begin + size, at::kLong);
  const auto number = static_cast<int64_t>(key_of(0, param) % 1000);
  return ((index * 7919 + number * 104729 + static_cast<int64_t>(buffer) * 15485863) % 9999991).to(at::kFloat);
}

void visit_state(Rank& rank, const std::function<void(Tensor here, const Tensor& expected)>& visit) {
  ShardBuffers buffers = rank.buffers();
  for (const ShardPiece& piece : buffers.pieces) {
    const auto runs = flat_runs(rank.model.params()[piece.param].spec, rank.groups);
    for (const FlatRun& run : clipped(runs, piece.local_begin, piece.size))
      for (size_t i = 0; i < ShardBuffers::named().size(); ++i)
        visit((buffers.*ShardBuffers::named()[i].tensor)
                  .narrow(0, piece.shard_begin + run.local_begin - piece.local_begin, run.size),
              expected_state(rank.model.params()[piece.param].spec.name, i, run.global_begin, run.size));
  }
}

TrainState some_state(int64_t step, int stage = 0) {
  return {.stage = stage,
          .step = step,
          .num_steps = 100,
          .cursor = {.step = step, .window = 3, .row = 5},
          .optimizer_steps = step - 1,
          .picture_steps = step - 2,
          .tokens = 1e15 + 0.125,
          .skipped_steps = 1,
          .best_metric = 0.1,
          .best_step = 4};
}

void save_one(Rank& rank, const RunConfig& config, const TrainState& state) {
  const RunFolder folder(config.out);
  Checkpointer checkpoint(config, folder, rank.groups);
  checkpoint.save(state, rank.model, *rank.optimizer);
  checkpoint.finish();
  EXPECT_FALSE(checkpoint.failed());
}

/// Checkpoints of one rank at the given steps of the first stage.
void write_checkpoints(const RunConfig& config, const std::vector<int64_t>& steps) {
  Rank rank(make_single_groups(), at::kFloat, 1);
  for (const int64_t step : steps) save_one(rank, config, some_state(step));
}

CheckpointPath find_one(const RunConfig& config, const std::string& resume = "auto") {
  return find_checkpoint(config, RunFolder(config.out), resume, make_single_groups());
}

std::vector<int64_t> steps_in(const RunConfig& config) {
  std::vector<int64_t> steps;
  for (const auto& found : RunFolder(config.out).checkpoints({"align", "all"})) steps.push_back(found.step);
  return steps;
}

void flip_a_byte(const std::string& file) {
  std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
  f.seekg(0, std::ios::end);
  const auto at = static_cast<std::streamoff>(f.tellg()) - 3;
  f.seekg(at);
  const char byte = static_cast<char>(f.get() ^ 0x10);
  f.seekp(at);
  f.put(byte);
}

/// Limits the size of files: writing beyond it fails as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &old_); }

 private:
  rlimit old_;
};

/// What one layout saves, others load: weights, master and moments, bit for bit.
void expect_loads(const Layout& from,
                  const std::vector<Layout>& others,
                  const ModelConfig& model,
                  at::ScalarType dtype) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  on_layout(from, [&](const Groups& groups) {
    Rank rank(groups, dtype, 1, model, from.schedule);
    visit_state(rank, [](Tensor here, const Tensor& expected) { here.copy_(expected); });
    save_one(rank, config, some_state(10));
  });
  for (const Layout& to : others) {
    on_layout(to, [&](const Groups& groups) {
      const CheckpointPath found = find_checkpoint(config, RunFolder(config.out), "auto", groups);
      ASSERT_EQ(found.step, 10);
      const Rank original(groups, dtype, 1, model, to.schedule);
      Rank rank(groups, dtype, 2, model, to.schedule);
      const TrainState state = load_checkpoint(found.directory, rank.model, *rank.optimizer);
      EXPECT_EQ(state.step, 10);
      EXPECT_EQ(rank.optimizer->num_steps(), (AppliedSteps{9, 8}));
      for (size_t i = 0; i < rank.model.params().size(); ++i)
        EXPECT_TRUE(at::equal(rank.model.params()[i].value, original.model.params()[i].value))
            << from.name << " -> " << to.name << ": " << rank.model.params()[i].spec.name;
      int64_t elements = 0;
      visit_state(rank, [&](Tensor here, const Tensor& expected) {
        EXPECT_TRUE(at::equal(here, expected)) << from.name << " -> " << to.name;
        elements += here.numel();
      });
      EXPECT_GT(elements, 0);
    });
  }
}

TEST(Checkpoint, EveryLayoutLoadsWhatEveryOtherSavedBitForBit) {
  for (const Layout& from : kLayouts) expect_loads(from, kLayouts, tiny_config(), at::kFloat);
  // The dtype of the weights plays no part in what goes where: a few layouts show it for the second one.
  for (const size_t from : {3, 7}) expect_loads(kLayouts[from], kLayouts, tiny_config(), at::kBFloat16);
}

TEST(Checkpoint, ExpertsLoadUnderEveryOtherCut) {
  ModelConfig model = tiny_config();
  model.decoder.type = "qwen3_moe";
  model.decoder.experts = 4;
  model.decoder.experts_per_token = 2;
  model.decoder.expert_ffn = 6;
  model.decoder.dense_layers = {1};
  for (const Layout& from : kExpertLayouts) expect_loads(from, kExpertLayouts, model, at::kFloat);
}

TEST(Checkpoint, FrozenWeightsAreStoredWithoutOptimizerState) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_checkpoints(config, {3});
  const TensorStore store(find_one(config).directory);
  int frozen = 0;
  for (const StoredTensor& tensor : store.tensors()) {
    EXPECT_FALSE(tensor.name.starts_with("m/tower.")) << tensor.name;
    frozen += tensor.name.starts_with("model/tower.");
  }
  EXPECT_GT(frozen, 5);
  EXPECT_TRUE(store.contains("v/decoder.embed.weight"));
}

TEST(Checkpoint, StateAndConfigComeBackAsTheyWere) {
  const TempFolder temp;
  RunConfig config = run_config(temp.path());
  config.optimizer.lr = 0.1 + 0.2;
  Rank rank(make_single_groups(), at::kFloat, 1);
  TrainState state = some_state(7, 1);
  state.best_metric = std::numeric_limits<double>::quiet_NaN();
  save_one(rank, config, state);
  const CheckpointPath found = find_one(config);
  EXPECT_EQ(found.stage, 1);
  EXPECT_EQ(found.directory, RunFolder(config.out).checkpoint("all", 7));
  EXPECT_EQ(echo(checkpoint_config(found.directory)), echo(config));
  const TrainState back = load_checkpoint(found.directory, rank.model, *rank.optimizer);
  EXPECT_EQ(back.stage, 1);
  EXPECT_EQ(back.step, 7);
  EXPECT_EQ(back.num_steps, 100);
  EXPECT_EQ(back.cursor, state.cursor);
  EXPECT_EQ(back.tokens, state.tokens);
  EXPECT_TRUE(std::isnan(back.best_metric));
  EXPECT_EQ(back.best_step, 4);
}

TEST(Checkpoint, WeightsOfAnotherDtypeComeFromTheMasterValues) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  {
    Rank rank(make_single_groups(), at::kBFloat16, 1);
    visit_state(rank, [](Tensor here, const Tensor& expected) { here.copy_(expected); });
    save_one(rank, config, some_state(2));
  }
  Rank rank(make_single_groups(), at::kFloat, 2);
  load_checkpoint(find_one(config).directory, rank.model, *rank.optimizer);
  const Param& embed = find_param(rank.model.params(), "decoder.embed.weight");
  EXPECT_TRUE(at::equal(embed.value.detach().view(-1), expected_state(embed.spec.name, 0, 0, embed.value.numel())));
}

TEST(Checkpoint, DamagedNewestIsPassedOverForTheOneBefore) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_checkpoints(config, {1, 2});
  flip_a_byte(RunFolder(config.out).checkpoint("align", 2) + "/shard-0.safetensors");
  testing::internal::CaptureStderr();
  EXPECT_EQ(find_one(config).step, 1);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("step_00000002/shard-0.safetensors; the checkpoint is damaged"), std::string::npos) << said;

  flip_a_byte(RunFolder(config.out).checkpoint("align", 1) + "/manifest.json");
  EXPECT_ERROR(error_of([&] { find_one(config); }), ErrorKind::kCheckpoint, "got 2 and none that can be used");
  EXPECT_TRUE(find_one(config, "never").directory.empty());
}

TEST(Checkpoint, EveryRankHearsOfDamageThatOneFound) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  on_layout({"", 2, 2}, [&](const Groups& groups) {
    Rank rank(groups, at::kFloat, 1);
    save_one(rank, config, some_state(1));
    save_one(rank, config, some_state(2));
  });
  flip_a_byte(RunFolder(config.out).checkpoint("align", 2) + "/shard-3.safetensors");
  on_layout({"", 2, 2}, [&](const Groups& groups) {
    EXPECT_EQ(find_checkpoint(config, RunFolder(config.out), "auto", groups).step, 1);
  });
}

TEST(Checkpoint, NamedCheckpointOrRunFolderIsTakenOrRefused) {
  const TempFolder temp;
  const RunConfig config = run_config(temp / "run");
  const RunFolder folder(config.out);
  EXPECT_TRUE(find_one(config).directory.empty()) << "nothing saved yet";
  write_checkpoints(config, {1, 2});
  EXPECT_EQ(find_one(config, folder.checkpoint("align", 1)).step, 1);
  EXPECT_EQ(find_one(config, config.out).step, 2);
  EXPECT_ERROR(error_of([&] { find_one(config, temp / "absent"); }), ErrorKind::kCheckpoint, "there is no such folder");
  flip_a_byte(folder.checkpoint("align", 1) + "/shard-0.safetensors");
  EXPECT_ERROR(error_of([&] { find_one(config, folder.checkpoint("align", 1)); }), ErrorKind::kCheckpoint, "xxh3");
  RunConfig other = config;
  other.stages[0].name = "other";
  EXPECT_ERROR(error_of([&] { find_one(other, folder.checkpoint("align", 2)); }),
               ErrorKind::kCheckpoint,
               "got one of stage align, expected one of the stages [other, all]");
}

TEST(Checkpoint, NewerSchemaIsRefused) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_checkpoints(config, {1});
  const std::string file = RunFolder(config.out).checkpoint("align", 1) + "/manifest.json";
  std::string text = read_file(file);
  const std::string now = "\"schema_version\":1";
  ASSERT_NE(text.find(now), std::string::npos) << text.substr(0, 300);
  write_file_atomically(file, text.replace(text.find(now), now.size(), "\"schema_version\":2"));
  EXPECT_ERROR(
      error_of([&] { find_one(config); }), ErrorKind::kCheckpoint, "written by a newer version of this program");
}

TEST(Checkpoint, AnotherModelIsRefusedWithNamesAndShapes) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_checkpoints(config, {1});
  ModelConfig wider = tiny_config();
  wider.decoder.ffn = 80;
  wider.decoder.tied = false;
  Rank rank(make_single_groups(), at::kFloat, 1, wider);
  const std::string directory = find_one(config).directory;
  for (const bool weights_only : {true, false}) {
    const Error error = error_of([&] {
      if (weights_only) {
        load_checkpoint_weights(directory, rank.model);
      } else {
        load_checkpoint(directory, rank.model, *rank.optimizer);
      }
    });
    EXPECT_ERROR(error, ErrorKind::kCheckpoint, "missing: [decoder.head.weight]");
    EXPECT_ERROR(error, ErrorKind::kCheckpoint, "decoder.layers.0.mlp.down.weight [24, 40] instead of [24, 80]");
  }
}

TEST(Checkpoint, TrainableWeightWithoutStateIsRefused) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_checkpoints(config, {1});
  Rank rank(make_single_groups(), at::kFloat, 1);
  for (Param& param : rank.model.params()) param.trainable = true;
  EXPECT_ERROR(error_of([&] { load_checkpoint(find_one(config).directory, rank.model, *rank.optimizer); }),
               ErrorKind::kCheckpoint,
               "got no optimizer state, expected it for every trainable weight; missing: [tower.");
}

TEST(Checkpoint, NewestAndBestAreKept) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  Rank rank(make_single_groups(), at::kFloat, 1);
  const RunFolder folder(config.out);
  Checkpointer checkpoint(config, folder, rank.groups);
  for (int64_t step = 1; step <= 5; ++step) {
    checkpoint.save(some_state(step), rank.model, *rank.optimizer);
    if (step == 2) checkpoint.mark_best(2);  // while it is being written
  }
  checkpoint.finish();
  EXPECT_EQ(steps_in(config), (std::vector<int64_t>{5, 4, 2}));
  EXPECT_EQ(folder.best("align"), "step_00000002");
  checkpoint.mark_best(5);  // after it was committed
  EXPECT_EQ(folder.best("align"), "step_00000005");
  checkpoint.save(some_state(6), rank.model, *rank.optimizer);
  checkpoint.finish();
  EXPECT_EQ(steps_in(config), (std::vector<int64_t>{6, 5}));
}

TEST(Checkpoint, PollCommitsWhatTheThreadHasWritten) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  const RunFolder folder(config.out);
  on_layout({"", 1, 2}, [&](const Groups& groups) {
    Rank rank(groups, at::kFloat, 1);
    Checkpointer checkpoint(config, folder, groups);
    checkpoint.save(some_state(1), rank.model, *rank.optimizer);
    // The copy is taken: what training does to the weights now is not in the checkpoint.
    for (Param& param : rank.model.params()) param.value.detach().fill_(77);
    rank.optimizer->master().fill_(77);
    for (bool is_there = false; !is_there;) {  // a thread commits it: one rank may see it before another
      checkpoint.poll();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Tensor seen = at::scalar_tensor(static_cast<int64_t>(steps_in(config).size()), at::kLong);
      groups.control->all_reduce(seen, Reduce::kMin);
      is_there = seen.item<int64_t>() > 0;
    }
    EXPECT_EQ(steps_in(config), std::vector<int64_t>{1});
    checkpoint.finish();
  });
  Rank original(make_single_groups(), at::kFloat, 1), rank(make_single_groups(), at::kFloat, 2);
  load_checkpoint(find_one(config).directory, rank.model, *rank.optimizer);
  for (size_t i = 0; i < rank.model.params().size(); ++i)
    EXPECT_TRUE(at::equal(rank.model.params()[i].value, original.model.params()[i].value));
  EXPECT_TRUE(at::equal(rank.optimizer->master(), original.optimizer->master()));
}

TEST(Checkpoint, FullDiskLeavesTrainingAndEarlierCheckpointsAlone) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  const RunFolder folder(config.out);
  on_layout({"", 1, 2}, [&](const Groups& groups) {
    Rank rank(groups, at::kFloat, 1);
    Checkpointer checkpoint(config, folder, groups);
    checkpoint.save(some_state(1), rank.model, *rank.optimizer);
    checkpoint.finish();
    groups.control->barrier();
    std::optional<FullDisk> disk;
    if (groups.rank == 0) disk.emplace(4096);
    groups.control->barrier();
    checkpoint.save(some_state(2), rank.model, *rank.optimizer);
    EXPECT_NO_THROW(checkpoint.finish());
    EXPECT_TRUE(checkpoint.failed());
    groups.control->barrier();
    EXPECT_EQ(steps_in(config), std::vector<int64_t>{1});
    EXPECT_FALSE(fs::exists(folder.checkpoint("align", 2) + ".tmp")) << "half a checkpoint fills the disk for nothing";
    groups.control->barrier();
    disk.reset();
    groups.control->barrier();
    checkpoint.save(some_state(3), rank.model, *rank.optimizer);
    checkpoint.finish();
    EXPECT_FALSE(checkpoint.failed());
  });
  EXPECT_EQ(find_one(config).step, 3);
}

/// Limits what this process may map from here on.
class LittleMemory {
 public:
  explicit LittleMemory(rlim_t more_bytes) {
    getrlimit(RLIMIT_AS, &old_);
    rlim_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlimit limit{pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + more_bytes, old_.rlim_max};
    setrlimit(RLIMIT_AS, &limit);
  }
  ~LittleMemory() { setrlimit(RLIMIT_AS, &old_); }

 private:
  rlimit old_;
};

/// Of this process.
int64_t num_threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

TEST(Checkpoint, AHostWithoutRoomForTheCopyIsWrittenWhileTrainingWaits) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  const RunFolder folder(config.out);
  ModelConfig large = tiny_config();
  large.decoder.vocab = 700000;
  Rank rank(make_single_groups(), at::kFloat, 1, large);
  Checkpointer checkpoint(config, folder, rank.groups);
  for (const int64_t step : {1, 2}) {
    testing::internal::CaptureStderr();
    {
      const int64_t threads = num_threads();
      const LittleMemory enough_for_threads(rlim_t{1} << 27);  // and too little to read a shard that was written
      checkpoint.expect_save(rank.model, *rank.optimizer);
      while (num_threads() > threads) std::this_thread::yield();
    }
    checkpoint.save(some_state(step), rank.model, *rank.optimizer);
    EXPECT_EQ(steps_in(config).size(), static_cast<size_t>(step)) << "it came back before it was written";
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_FALSE(checkpoint.failed());
    EXPECT_NE(said.find("host memory: got 'Cannot allocate memory', expected 0."), std::string::npos) << said;
    EXPECT_NE(said.find("training waits"), std::string::npos) << said;
    Rank back(make_single_groups(), at::kFloat, 2, large);
    load_checkpoint(folder.checkpoint("align", step), back.model, *back.optimizer);
    EXPECT_TRUE(at::equal(back.optimizer->master(), rank.optimizer->master()));
    for (size_t i = 0; i < rank.model.params().size(); ++i)
      EXPECT_TRUE(at::equal(back.model.params()[i].value, rank.model.params()[i].value));
  }
  checkpoint.save(some_state(3), rank.model, *rank.optimizer);
  checkpoint.finish();
  EXPECT_FALSE(checkpoint.failed());
}

TEST(Checkpoint, MemoryIsMadeAheadOnlyWhereASaveFollows) {
  const SaveConfig often{.every = 4, .best = false, .at_end = false};
  for (const auto& [step, follows] : std::map<int64_t, bool>{{1, true}, {3, true}, {4, true}, {7, true}, {8, false}})
    EXPECT_EQ(save_follows(often, true, step, 11), follows) << step;
  const SaveConfig never{.every = 0, .best = false, .at_end = false}, late{.every = 12, .best = false, .at_end = false};
  EXPECT_FALSE(save_follows(never, true, 1, 11));
  EXPECT_FALSE(save_follows(late, true, 1, 11)) << "none is due within the stage";
  const SaveConfig best{.every = 0, .best = true, .at_end = false}, last{.every = 0, .best = false, .at_end = true};
  EXPECT_TRUE(save_follows(best, true, 1, 11));
  EXPECT_FALSE(save_follows(best, false, 1, 11)) << "nothing tells which is the best";
  EXPECT_TRUE(save_follows(last, false, 1, 11));
  EXPECT_FALSE(save_follows(last, false, 11, 11)) << "it is over";
}

TEST(Checkpoint, FolderThatCannotBeMadeIsAFailureNotTheEnd) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_file_atomically(temp / "checkpoints", "in the way");
  on_layout({"", 1, 2}, [&](const Groups& groups) {
    Rank rank(groups, at::kFloat, 1);
    const RunFolder folder(config.out);
    Checkpointer checkpoint(config, folder, groups);
    EXPECT_NO_THROW(checkpoint.save(some_state(1), rank.model, *rank.optimizer));
    checkpoint.finish();
    EXPECT_TRUE(checkpoint.failed());
  });
}

TEST(Checkpoint, LeftoversOfInterruptedSavesAreCleared) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  const std::string leftover = RunFolder(config.out).checkpoint("align", 2) + ".tmp";
  fs::create_directories(leftover);
  write_file_atomically(leftover + "/shard-7.safetensors", "half");
  EXPECT_TRUE(find_one(config).directory.empty()) << "it does not count as a checkpoint";
  write_checkpoints(config, {1});
  EXPECT_FALSE(fs::exists(leftover));
}

TEST(Checkpoint, BeforeStepsWithPicturesWereCountedAllHadThem) {
  nlohmann::json json = to_json(CheckpointState{.train = some_state(10)});
  EXPECT_EQ(state_from_json(json, "here").train.picture_steps, 8);
  json["train"].erase("picture_steps");
  EXPECT_EQ(state_from_json(json, "here").train.picture_steps, 9);
  json["train"].erase("optimizer_steps");
  message_of(ErrorKind::kCheckpoint, [&] { state_from_json(json, "here"); });
}

TEST(Checkpoint, GoingOnFromAnEarlierPointSetsTheLaterOnesAside) {
  const TempFolder temp;
  const RunConfig config = run_config(temp.path());
  write_checkpoints(config, {1, 5});
  write_checkpoints(config, {3});
  EXPECT_EQ(steps_in(config), (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(find_one(config).step, 3);
  EXPECT_TRUE(fs::exists(RunFolder(config.out).checkpoint("align", 5) + ".aside"));
  write_checkpoints(config, {3});
  EXPECT_EQ(steps_in(config), (std::vector<int64_t>{3, 1}));
  EXPECT_TRUE(fs::exists(RunFolder(config.out).checkpoint("align", 3) + ".aside")) << "of another course, it is kept";
}

}  // namespace
}  // namespace hanok
