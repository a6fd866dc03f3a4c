#include "trainer/run_folder.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

void make_checkpoint(const RunFolder& run, const std::string& stage, int64_t step, bool is_complete = true) {
  fs::create_directories(run.checkpoint(stage, step));
  if (is_complete) std::ofstream(run.checkpoint(stage, step) + "/manifest.json") << "{}";
}

std::vector<std::string> listed(const RunFolder& run, const std::vector<std::string>& stages) {
  std::vector<std::string> out;
  for (const CheckpointPath& found : run.checkpoints(stages))
    out.push_back(concat(stages[found.stage], " ", found.step));
  return out;
}

std::string text_of(const std::string& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

using Names = std::vector<std::string>;
const Names kStages = {"align", "all"};

TEST(RunFolder, ListsCompleteCheckpointsNewestFirst) {
  const TempFolder temp;
  const RunFolder run(temp / "run");
  EXPECT_TRUE(run.checkpoints(kStages).empty());
  for (const int64_t step : {5, 100000000, 20}) make_checkpoint(run, "align", step);
  make_checkpoint(run, "all", 7);
  make_checkpoint(run, "all", 9, false);
  make_checkpoint(run, "other", 1);
  fs::create_directories(run.checkpoint("all", 8) + ".tmp");
  fs::create_directories(run.path() + "/checkpoints/all/step_x");
  EXPECT_EQ(listed(run, kStages), (Names{"all 7", "align 100000000", "align 20", "align 5"}));
  EXPECT_EQ(run.checkpoint("all", 7), temp / "run/checkpoints/all/step_00000007");
}

TEST(RunFolder, PruneKeepsTheNewestAndTheBestOfEveryStage) {
  const TempFolder temp;
  const RunFolder run(temp.path());
  for (const int64_t step : {10, 20, 30}) make_checkpoint(run, "align", step);
  run.set_best("align", 10);
  EXPECT_EQ(run.best("align"), "step_00000010");
  run.prune(kStages, 2);
  EXPECT_EQ(listed(run, kStages), (Names{"align 30", "align 20", "align 10"}));
  make_checkpoint(run, "all", 1);
  run.prune(kStages, 2);
  EXPECT_EQ(listed(run, kStages), (Names{"all 1", "align 30", "align 10"}));
  run.set_best("align", 30);
  make_checkpoint(run, "all", 2);
  run.prune(kStages, 2);
  EXPECT_EQ(listed(run, kStages), (Names{"all 2", "all 1", "align 30"}));
  EXPECT_EQ(run.best("all"), "");
  fs::remove_all(run.checkpoint("align", 30));
  EXPECT_EQ(run.best("align"), "") << "a best one that is gone is none";
}

TEST(RunFolder, SetsAsideWhatLiesBeyondThePointWhereARunGoesOn) {
  const TempFolder temp;
  const RunFolder run(temp.path());
  for (const int64_t step : {10, 20}) make_checkpoint(run, "align", step);
  for (const int64_t step : {10, 20}) make_checkpoint(run, "all", step);
  run.set_aside_from(kStages, 1, 11);
  EXPECT_EQ(listed(run, kStages), (Names{"all 10", "align 20", "align 10"}));
  EXPECT_TRUE(fs::exists(run.checkpoint("all", 20) + ".aside"));
  make_checkpoint(run, "all", 20);
  run.set_aside_from(kStages, 0, 20);
  EXPECT_EQ(listed(run, kStages), Names{"align 10"});
  EXPECT_TRUE(fs::exists(run.checkpoint("all", 20) + ".aside.2")) << "what was set aside before stays";
  run.set_aside_from(kStages, 0, 0);
  EXPECT_TRUE(run.checkpoints(kStages).empty());
}

TEST(RunFolder, KnowsStagesThatTheConfigHasNot) {
  const TempFolder temp;
  const RunFolder run(temp.path());
  EXPECT_TRUE(run.strange_stages(kStages).empty());
  make_checkpoint(run, "all", 20);
  make_checkpoint(run, "polish", 3);
  fs::create_directories(temp / "checkpoints/empty");
  EXPECT_EQ(run.strange_stages(kStages), Names{"polish"});
}

TEST(RunFolder, SecondOwnerIsRefusedByTheNameOfTheFirst) {
  const TempFolder temp;
  RunFolder first(temp / "a/run");
  first.lock("slurm 42");
  RunFolder second(temp / "a/run");
  const std::string text = message_of(ErrorKind::kIo, [&] { second.lock(); });
  EXPECT_NE(text.find(concat("(pid ", static_cast<int64_t>(getpid()), " on ")), std::string::npos) << text;
  EXPECT_NE(text.find(", job slurm 42, since 20"), std::string::npos) << text;
  EXPECT_NE(text_of(temp / "a/run/LOCK").find("job slurm 42"), std::string::npos) << "the loser must not write";
}

TEST(RunFolder, LockIsFreeAgainAfterItsOwnerIsDestroyed) {
  const TempFolder temp;
  {
    RunFolder run(temp.path());
    run.lock();
  }
  RunFolder again(temp.path());
  EXPECT_NO_THROW(again.lock());
}

TEST(RunFolder, LockOfAKilledProcessIsFree) {
  const TempFolder temp;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    RunFolder run(temp.path());
    run.lock();
    if (write(ready[1], "x", 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  RunFolder run(temp.path());
  EXPECT_THROW(run.lock(), Error) << "the child holds it";
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(run.lock());
  EXPECT_NE(text_of(temp / "LOCK").find(concat("pid ", static_cast<int64_t>(getpid()))), std::string::npos);
}

TEST(RunFolder, FolderThatCannotBeWrittenIsAnIoError) {
  const TempFolder temp;
  std::ofstream(temp / "file") << "x";
  RunFolder run(temp / "file/run");
  EXPECT_ERROR(
      error_of([&] { run.lock(); }), ErrorKind::kIo, "expected a folder that can be written; " + (temp / "file/run"));
}

}  // namespace
}  // namespace hanok
