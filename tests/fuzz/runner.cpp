#include "tests/fuzz/runner.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "tests/fuzz/memory.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// Counters of tests/support/sanitizers.cpp; absent in trees without HANOK_FUZZ, where mutation is blind.
extern "C" uint8_t hanok_branches[1 << 16] __attribute__((weak));

namespace hanok::fuzz {
namespace {

namespace fs = std::filesystem;

constexpr double kMaxSeconds = 1;    // of CPU time for one execution
constexpr double kHangSeconds = 20;  // beyond it the process ends
constexpr size_t kNumBranches = 1 << 16;
constexpr int kMaxFindings = 20;

double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}
// What the handlers of fatal signals need, without allocating.
const std::string* current_input = nullptr;
char crash_path[512] = "";
double begun = 0;

void write_current(const char* what) {
  if (!current_input) return;
  const int fd = ::open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd >= 0) {
    if (::write(fd, current_input->data(), current_input->size()) < 0) what = "the input cannot be written";
    ::close(fd);
  }
  for (const char* text : {"FINDING: ", what, "; input: ", static_cast<const char*>(crash_path), "\n"}) {
    if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;
  }
  current_input = nullptr;
}

[[maybe_unused]] void on_death() {
  write_current("a sanitizer report");
}
void on_signal(int number) {
  write_current(number == SIGABRT ? "abort" : number == SIGSEGV ? "segmentation fault" : "a fatal signal");
  ::signal(number, SIG_DFL);
  ::raise(number);
}
void on_tick(int) {
  if (!current_input || cpu_seconds() - begun < kHangSeconds) return;
  write_current("a hang");
  ::_exit(1);
}

void install_handlers(const Target& target, const std::string& folder) {
  std::snprintf(crash_path, sizeof crash_path, "%s/%s-crash", folder.c_str(), target.name);
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK;
  ::sigaction(SIGABRT, &action, nullptr);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(on_death);
#else
  static std::array<char, 1 << 16> stack;
  stack_t alternative{};
  alternative.ss_sp = stack.data();
  alternative.ss_size = stack.size();
  ::sigaltstack(&alternative, nullptr);  // a stack that overflowed cannot carry the handler
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::sigaction(number, &action, nullptr);
#endif
  action.sa_handler = on_tick;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGPROF, &action, nullptr);
  const itimerval period{{1, 0}, {1, 0}};
  ::setitimer(ITIMER_PROF, &period, nullptr);
}

std::string hex_hash(const std::string& bytes) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(XXH3_64bits(bytes.data(), bytes.size())));
  return text;
}

std::vector<std::string> files_of(const fs::path& folder) {
  std::vector<fs::path> paths;
  if (fs::is_directory(folder)) {
    for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> out;
  for (const fs::path& path : paths) {
    std::ifstream in(path, std::ios::binary);
    out.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  return out;
}

/// AFL's buckets: how often a branch was taken counts only roughly.
uint8_t bucket(uint8_t count) {
  constexpr uint8_t kBegins[] = {1, 2, 3, 4, 8, 16, 32, 128};
  uint8_t bit = 0;
  for (int i = 0; i < 8; ++i) {
    if (count >= kBegins[i]) bit = static_cast<uint8_t>(1 << i);
  }
  return bit;
}

class Run {
 public:
  Run(const Target& target, const Options& options)
      : target_(target), options_(options), random_(options.seed), seen_(kNumBranches) {
    for (int i = 0; i < 256; ++i) buckets_[i] = bucket(static_cast<uint8_t>(i));
  }

  int all() {
    const double start = now_s();
    std::vector<std::string> first = target_.seeds();
    const auto add_files = [&](const fs::path& folder) {
      for (std::string& input : files_of(folder)) first.push_back(std::move(input));
    };
    add_files(fs::path(HANOK_SOURCE_DIR) / "tests/fuzz/regressions" / target_.name);
    if (!options_.corpus.empty()) {
      fs::create_directories(options_.corpus);
      add_files(options_.corpus);
    }
    for (std::string& input : first) {
      execute(input);
      keep(std::move(input));
    }
    while (num_executions_ < options_.runs && num_findings_ < kMaxFindings) {
      if (options_.seconds > 0 && now_s() - start > options_.seconds) break;
      // What is accepted gets further than what is refused, and is rarer.
      const bool from_accepted = !accepted_.empty() && random_.one_in(2);
      std::string input = corpus_[from_accepted ? random_.pick(accepted_) : random_.below(corpus_.size())];
      for (size_t n = random_.few(8); n > 0; --n) {
        target_.mutate(input, random_.pick(corpus_), random_);
        if (input.size() > target_.max_bytes) input.resize(target_.max_bytes);
      }
      if (execute(input)) {
        if (!options_.corpus.empty()) std::ofstream(options_.corpus + "/" + hex_hash(input), std::ios::binary) << input;
        keep(std::move(input));
      }
    }
    const double seconds = now_s() - start;
    const auto branches = std::count_if(seen_.begin(), seen_.end(), [](uint8_t bits) { return bits != 0; });
    std::printf(
        "%-14s seed %llu: %lld executions (%lld accepted, %lld refused) in %.0f s, corpus %zu, branches %lld; "
        "worst: %.3f s, memory %.2f of its bound; findings: %d\n",
        target_.name,
        static_cast<unsigned long long>(options_.seed),
        static_cast<long long>(num_executions_),
        static_cast<long long>(num_executions_ - num_refused_),
        static_cast<long long>(num_refused_),
        seconds,
        corpus_.size(),
        static_cast<long long>(branches),
        worst_seconds_,
        worst_ratio_,
        num_findings_);
    std::fflush(stdout);
    return num_findings_;
  }

  /// True if the input took a branch for the first time.
  bool execute(const std::string& input) {
    ++num_executions_;
    const bool is_guided = hanok_branches != nullptr;
    if (is_guided) std::memset(hanok_branches, 0, kNumBranches);
    current_input = &input;
    begun = cpu_seconds();
    is_accepted_ = true;
    std::string problem;
    {
      Budget budget;
      try {
        target_.run(input, budget);
        budget.end_phase();
      } catch (const Error& error) {
        ++num_refused_;
        is_accepted_ = false;
        refusal_ = error.what();
        try {
          budget.end_phase();
        } catch (const std::length_error& over) {
          problem = over.what();
        }
      } catch (const std::exception& error) {
        problem = concat("an exception other than hanok::Error: ", error.what());
      }
      worst_ratio_ = std::max(worst_ratio_, budget.worst_ratio());
    }
    const double seconds = cpu_seconds() - begun;
    current_input = nullptr;
    worst_seconds_ = std::max(worst_seconds_, seconds);
    if (seconds > kMaxSeconds) problem = concat("too slow: ", seconds, " s");
    if (!problem.empty()) report(input, problem);
    return is_guided && problem.empty() && takes_new_branch();
  }
  const std::string& refusal() const { return refusal_; }
  int num_findings() const { return num_findings_; }

 private:
  /// Takes the input that was executed last into the corpus.
  void keep(std::string input) {
    if (is_accepted_) accepted_.push_back(corpus_.size());
    corpus_.push_back(std::move(input));
  }

  bool takes_new_branch() {
    bool is_new = false;
    for (size_t word = 0; word < kNumBranches; word += 8) {
      uint64_t any;
      std::memcpy(&any, hanok_branches + word, 8);
      if (any == 0) continue;
      for (size_t i = word; i < word + 8; ++i) {
        const uint8_t bits = buckets_[hanok_branches[i]];
        if ((seen_[i] | bits) == seen_[i]) continue;
        seen_[i] |= bits;
        is_new = true;
      }
    }
    return is_new;
  }

  void report(const std::string& input, const std::string& problem) {
    // One finding of a kind: numbers differ from input to input.
    std::string kind;
    for (const char c : problem.substr(0, 80)) {
      if (c < '0' || c > '9') kind += c;
    }
    if (!kinds_.insert(kind).second) return;
    ++num_findings_;
    const std::string path = concat(options_.findings, "/", target_.name, "-", hex_hash(input));
    std::ofstream(path, std::ios::binary) << input;
    std::fprintf(stderr, "FINDING: %s: %s; input: %s\n", target_.name, problem.c_str(), path.c_str());
  }

  const Target& target_;
  const Options& options_;
  Random random_;
  std::vector<std::string> corpus_;
  std::vector<size_t> accepted_;  // places in corpus_
  bool is_accepted_ = false;      // of the last execution
  std::vector<uint8_t> seen_;     // by branch: the buckets that were reached
  std::array<uint8_t, 256> buckets_{};
  std::set<std::string> kinds_;
  std::string refusal_;
  int64_t num_executions_ = 0, num_refused_ = 0;
  double worst_seconds_ = 0, worst_ratio_ = 0;
  int num_findings_ = 0;
};

}  // namespace

void Budget::begin_phase(std::string name, size_t bytes) {
  end_phase();
  name_ = std::move(name);
  bound_ = bytes;
  reset_peak();
}

void Budget::end_phase() {
  if (bound_ == 0) return;
  const size_t peak = peak_bytes(), bound = std::exchange(bound_, 0);
  worst_ratio_ = std::max(worst_ratio_, static_cast<double>(peak) / static_cast<double>(bound));
  if (peak > 2 * bound) {
    throw std::length_error(concat("memory: got ", peak, " bytes, expected at most twice ", bound, "; ", name_));
  }
}

int run_target(const Target& target, const Options& options) {
  install_handlers(target, options.findings);
  return Run(target, options).all();
}

int run_file(const Target& target, const std::string& path) {
  const Options options;
  install_handlers(target, options.findings);
  std::ifstream in(path, std::ios::binary);
  const std::string input((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Run run(target, options);
  run.execute(input);
  std::printf("%s: %zu bytes: %s\n",
              target.name,
              input.size(),
              run.num_findings() > 0 ? "a finding" : (run.refusal().empty() ? "accepted" : run.refusal().c_str()));
  return run.num_findings();
}

}  // namespace hanok::fuzz
