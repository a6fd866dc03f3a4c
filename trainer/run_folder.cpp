#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "base/clock.h"
#include "base/host_name.h"
#include "base/log.h"
#include "dataio/tensor_store.h"

namespace hanok {
namespace {

namespace fs = std::filesystem;

std::string step_name(int64_t step) {
  char text[32];
  std::snprintf(text, sizeof text, "step_%08lld", static_cast<long long>(step));
  return text;
}

/// The step that a folder's name says, or -1.
int64_t step_of(const std::string& name) {
  constexpr std::string_view prefix = "step_";
  int64_t step = -1;
  const char* end = name.data() + name.size();
  if (!name.starts_with(prefix)) return -1;
  const auto parsed = std::from_chars(name.data() + prefix.size(), end, step);
  return parsed.ptr == end && parsed.ec == std::errc() && step >= 0 ? step : -1;
}

std::string owner_text(const std::string& job) {
  return concat("pid ",
                static_cast<int64_t>(::getpid()),
                " on ",
                host_name(),
                job.empty() ? "" : ", job " + job,
                ", since ",
                utc_now(),
                "\n");
}

}  // namespace

std::vector<std::string> stage_names(const RunConfig& config) {
  std::vector<std::string> names;
  for (const StageConfig& stage : config.stages) names.push_back(stage.name);
  return names;
}

std::string RunFolder::checkpoint(const std::string& stage_name, int64_t step) const {
  return concat(path_, "/checkpoints/", stage_name, "/", step_name(step));
}

std::vector<CheckpointPath> RunFolder::checkpoints(const std::vector<std::string>& stage_names) const {
  std::vector<CheckpointPath> out;
  for (size_t stage = 0; stage < stage_names.size(); ++stage) {
    std::error_code error;
    const std::string parent = concat(path_, "/checkpoints/", stage_names[stage]);
    for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
      const int64_t step = step_of(it->path().filename().string());
      std::error_code ignored;
      if (step >= 0 && fs::exists(it->path() / "manifest.json", ignored))
        out.push_back({static_cast<int>(stage), step, it->path().string()});
    }
  }
  std::sort(out.begin(), out.end(), [](const CheckpointPath& a, const CheckpointPath& b) {
    return a.stage != b.stage ? a.stage > b.stage : a.step > b.step;
  });
  return out;
}

std::vector<std::string> RunFolder::strange_stages(const std::vector<std::string>& stage_names) const {
  std::vector<std::string> out;
  std::error_code error;
  for (fs::directory_iterator it(path_ + "/checkpoints", error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool is_known = std::find(stage_names.begin(), stage_names.end(), name) != stage_names.end();
    if (!is_known && !checkpoints({name}).empty()) out.push_back(name);
  }
  std::sort(out.begin(), out.end());
  return out;
}

std::string RunFolder::best(const std::string& stage_name) const {
  const std::string folder = concat(path_, "/checkpoints/", stage_name);
  std::error_code error;
  if (!fs::exists(folder + "/best", error)) return "";
  std::string name = read_file(folder + "/best");
  while (!name.empty() && name.back() == '\n') name.pop_back();
  return step_of(name) >= 0 && fs::exists(concat(folder, "/", name), error) ? name : "";
}

std::string RunFolder::best_directory(const std::string& stage_name) const {
  const std::string name = best(stage_name);
  return name.empty() ? "" : concat(path_, "/checkpoints/", stage_name, "/", name);
}

void RunFolder::set_best(const std::string& stage_name, int64_t step) const {
  const std::string file = concat(path_, "/checkpoints/", stage_name, "/best");
  if (step >= 0) return write_file_atomically(file, step_name(step) + "\n");
  std::error_code error;
  fs::remove(file, error);
  HANOK_REQUIRE(!error, kIo) << "checkpoint: got '" << error.message() << "' when removing a mark, expected success; "
                             << file << "; check rights, or remove it by hand";
}

void RunFolder::prune(const std::vector<std::string>& stage_names, int64_t keep) const {
  const std::vector<CheckpointPath> all = checkpoints(stage_names);
  for (size_t i = static_cast<size_t>(std::max<int64_t>(keep, 0)); i < all.size(); ++i) {
    if (best(stage_names[all[i].stage]) == step_name(all[i].step)) continue;
    // Renamed first: a kill in the middle of the removal must not leave half a checkpoint under its name.
    const std::string doomed = all[i].directory + ".removed.tmp";
    std::error_code error;
    fs::rename(all[i].directory, doomed, error);
    if (!error) fs::remove_all(doomed, error);
    if (error)
      HANOK_LOG(WARNING) << "old checkpoint: got '" << error.message() << "' when removing it; " << all[i].directory
                         << "; remove it by hand";
  }
}

void RunFolder::set_aside_from(const std::vector<std::string>& stage_names, int stage, int64_t step) const {
  for (const CheckpointPath& found : checkpoints(stage_names)) {
    if (found.stage < stage || (found.stage == stage && found.step < step)) continue;
    std::error_code error;
    std::string aside = found.directory + ".aside";
    for (int i = 2; fs::exists(aside, error) && !error; ++i) aside = concat(found.directory, ".aside.", i);
    if (!error) fs::rename(found.directory, aside, error);
    HANOK_REQUIRE(!error, kIo) << "checkpoint: got '" << error.message()
                               << "' when setting it aside, expected success; " << found.directory
                               << "; check rights, or remove it by hand";
    HANOK_LOG(WARNING) << "checkpoint " << found.directory
                       << " is not of the course that this run takes; it is kept as " << aside;
  }
}

void RunFolder::lock(const std::string& job) {
  std::error_code error;
  fs::create_directories(path_, error);
  const std::string file = path_ + "/LOCK";
  const int fd = error ? -1 : ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  HANOK_REQUIRE(fd >= 0, kIo) << "run folder: got '"
                              << (error ? error : std::error_code(errno, std::generic_category())).message()
                              << "', expected a folder that can be written; " << path_
                              << "; check rights and space, or set `out`";
  const bool is_taken = ::flock(fd, LOCK_EX | LOCK_NB) != 0;
  if (is_taken && errno != EWOULDBLOCK) {
    HANOK_LOG(WARNING) << "run folder: got '" << std::error_code(errno, std::generic_category()).message()
                       << "' when locking " << file
                       << "; this file system keeps no locks: let no second run write here";
  } else if (is_taken) {
    ::close(fd);
    std::string owner = read_file(file);
    while (!owner.empty() && owner.back() == '\n') owner.pop_back();
    HANOK_FAIL(kIo) << "run folder: got one that another process writes (" << owner << "), expected a free one; "
                    << path_ << "; wait for it or end it, or set another `out`";
  }
  lock_fd_ = fd;
  const std::string owner = owner_text(job);
  const bool is_written =
      ::ftruncate(fd, 0) == 0 && ::pwrite(fd, owner.data(), owner.size(), 0) == static_cast<ssize_t>(owner.size());
  HANOK_REQUIRE(is_written, kIo) << "run folder: got '" << std::error_code(errno, std::generic_category()).message()
                                 << "', expected a folder that can be written; " << file << "; check space and rights";
}

RunFolder::~RunFolder() {
  if (lock_fd_ >= 0) ::close(lock_fd_);  // frees the lock; the file stays, so that nobody locks a deleted one
}

}  // namespace hanok
