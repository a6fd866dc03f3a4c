// fuzz [--runs N] [--seed S] [--seconds T] [--corpus FOLDER] [--findings FOLDER] TARGET...
// fuzz TARGET --file PATH: one input.
// Without a target: all. Exit 1 if anything was found. What the figures mean: tests/fuzz/README.md.
#include <sys/resource.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "tests/fuzz/memory.h"
#include "tests/fuzz/runner.h"

namespace hanok::fuzz {
namespace {

template <class T>
T number(const char* option, const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  HANOK_REQUIRE(error == std::errc() && end == text.data() + text.size(), kConfig)
      << option << ": got " << text << ", expected a number";
  return value;
}

// Inputs here have kilobytes where files have megabytes: recursion over them is found on a stack that is as much
// smaller.
void limit_stack() {
  rlimit limit{};
  ::getrlimit(RLIMIT_STACK, &limit);
  limit.rlim_cur = 512 << 10;
  ::setrlimit(RLIMIT_STACK, &limit);
}

int run(const std::vector<std::string>& arguments) {
  Options options;
  std::string file;
  std::vector<const Target*> chosen;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.starts_with("--")) {
      HANOK_REQUIRE(i + 1 < arguments.size(), kConfig) << argument << ": got nothing, expected a value";
      const std::string& value = arguments[++i];
      if (argument == "--runs") {
        options.runs = number<int64_t>("--runs", value);
      } else if (argument == "--seed") {
        options.seed = number<uint64_t>("--seed", value);
      } else if (argument == "--seconds") {
        options.seconds = number<double>("--seconds", value);
      } else if (argument == "--corpus") {
        options.corpus = value;
      } else if (argument == "--findings") {
        options.findings = value;
      } else if (argument == "--file") {
        file = value;
      } else {
        HANOK_FAIL(kConfig) << argument << ": got this option; expected --runs --seed --seconds --corpus --findings "
                            << "--file";
      }
      continue;
    }
    const size_t before = chosen.size();
    std::vector<std::string> names;
    for (const Target& target : targets()) {
      names.emplace_back(target.name);
      if (argument == target.name) chosen.push_back(&target);
    }
    HANOK_REQUIRE(chosen.size() > before, kConfig) << "target: got " << argument << ", expected one of " << names;
  }
  if (chosen.empty()) {
    for (const Target& target : targets()) chosen.push_back(&target);
  }
  count_allocations();
  limit_stack();
  int num_findings = 0;
  for (const Target* target : chosen) {
    num_findings += file.empty() ? run_target(*target, options) : run_file(*target, file);
  }
  return num_findings > 0 ? 1 : 0;
}

}  // namespace

const std::vector<Target>& targets() {
  static const std::vector<Target> kAll = [] {
    std::vector<Target> all;
    for (const auto* list : {&kStoreTargets, &kTextTargets, &kImageTargets, &kModelTargets}) {
      all.insert(all.end(), list->begin(), list->end());
    }
    return all;
  }();
  return kAll;
}

}  // namespace hanok::fuzz

int main(int argc, char** argv) {
  try {
    return hanok::fuzz::run({argv + 1, argv + argc});
  } catch (const hanok::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
