#include "dataio/file_lock.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <vector>

#include "base/error.h"
#include "tests/dataio/temp_folder.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

TEST(FileLock, OfAFileThatItsOwnersRemoveHasOneOwnerAtATime) {
  const TempFolder temp;
  const std::string folder = temp / "work", mark = folder + "/mark";
  std::atomic<int> owners{0}, taken{0}, most{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      for (int round = 0; round < 1000; ++round) {
        const auto lock = FileLock::of_removed_file(mark);
        if (!lock) continue;
        ++taken;
        if (const int now = ++owners; now > most) most = now;
        std::this_thread::yield();
        --owners;
        std::error_code others_are_in_it;
        fs::remove(mark, others_are_in_it);
        fs::remove(folder, others_are_in_it);
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
  EXPECT_GT(taken, 1000);
  EXPECT_FALSE(fs::exists(folder));
}

TEST(FileLock, OfARemovedFileIsNotHadTwice) {
  const TempFolder temp;
  const std::string mark = temp / "work/mark";
  EXPECT_TRUE(is_unlocked(mark));
  auto lock = FileLock::of_removed_file(mark);
  ASSERT_TRUE(lock);
  EXPECT_FALSE(FileLock::of_removed_file(mark));
  EXPECT_FALSE(is_unlocked(mark));
  lock.reset();
  EXPECT_TRUE(is_unlocked(mark));
  EXPECT_TRUE(FileLock::of_removed_file(mark));
}

TEST(FileLock, AFolderThatCannotBeMadeIsAnError) {
  const TempFolder temp;
  { const auto file = FileLock::of_removed_file(temp / "file"); }
  EXPECT_ERROR(error_of([&] { FileLock::of_removed_file(temp / "file/mark"); }), ErrorKind::kIo, "file");
}

}  // namespace
}  // namespace hanok
