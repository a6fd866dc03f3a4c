#include <ATen/Parallel.h>
#include <H5public.h>
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <thread>

#include "base/error.h"
#include "base/host_name.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/doctor_config.h"
#include "launch/doctor_facts.h"
#include "launch/version.h"
#include "trainer/version.h"

namespace hanok {
namespace {

struct Place {
  int rank = 0, size = 1, local_size = 1;
};

Place place_of_rank() {
  Place place{.rank = world_rank(), .size = world_size()};
  MPI_Comm node;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_size(node, &place.local_size);
  MPI_Comm_free(&node);
  return place;
}

/// The text of every rank, on rank 0.
std::vector<std::string> gather_texts(const std::string& own, const Place& place) {
  const int length = static_cast<int>(own.size());
  std::vector<int> lengths(place.size), starts(place.size);
  MPI_Gather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, 0, MPI_COMM_WORLD);
  int total = 0;
  for (int rank = 0; rank < place.size; ++rank) starts[rank] = std::exchange(total, total + lengths[rank]);
  std::string all(total, '\0');
  MPI_Gatherv(own.data(), length, MPI_CHAR, all.data(), lengths.data(), starts.data(), MPI_CHAR, 0, MPI_COMM_WORLD);
  std::vector<std::string> texts;
  if (place.rank == 0)
    for (int rank = 0; rank < place.size; ++rank) texts.push_back(all.substr(starts[rank], lengths[rank]));
  return texts;
}

// Records end with \2, fields with \1: neither is in a path or a version.
std::string join_records(const std::vector<std::pair<std::string, std::string>>& records) {
  std::string text;
  for (const auto& [a, b] : records) text += a + '\1' + b + '\2';
  return text;
}

std::vector<std::pair<std::string, std::string>> split_records(const std::string& text) {
  std::vector<std::pair<std::string, std::string>> records;
  for (size_t at = 0; at < text.size();) {
    const size_t middle = text.find('\1', at), end = text.find('\2', middle);
    records.emplace_back(text.substr(at, middle - at), text.substr(middle + 1, end - middle - 1));
    at = end + 1;
  }
  return records;
}

std::string ranks_text(const std::vector<int>& ranks, int size) {
  if (static_cast<int>(ranks.size()) == size) return "";
  return concat(ranks.size() == 1 ? "rank " : "ranks ", ranks.size() == 1 ? concat(ranks[0]) : concat(ranks), ": ");
}

/// A value that all ranks share is one line; else a line for each value, with its ranks.
void print_facts(const std::vector<std::string>& texts) {
  const int size = static_cast<int>(texts.size());
  std::vector<std::string> names;
  std::map<std::string, std::vector<std::pair<std::string, std::vector<int>>>> values;
  for (int rank = 0; rank < size; ++rank) {
    for (const auto& [name, value] : split_records(texts[rank])) {
      auto& seen = values[name];
      if (seen.empty()) names.push_back(name);
      const auto same = std::find_if(seen.begin(), seen.end(), [&](const auto& entry) { return entry.first == value; });
      if (same != seen.end()) {
        same->second.push_back(rank);
      } else {
        seen.push_back({value, {rank}});
      }
    }
  }
  for (const std::string& name : names)
    for (const auto& [value, ranks] : values[name])
      std::printf("  %-12s %s%s\n", name.c_str(), ranks_text(ranks, size).c_str(), value.c_str());
}

/// Which ranks run where: "host: ranks [0, 1]".
void print_mapping(const std::vector<std::string>& hosts) {
  std::vector<std::pair<std::string, std::vector<int>>> by_host;
  for (size_t rank = 0; rank < hosts.size(); ++rank) {
    if (by_host.empty() || by_host.back().first != hosts[rank]) by_host.push_back({hosts[rank], {}});
    by_host.back().second.push_back(static_cast<int>(rank));
  }
  std::printf("  %-12s %d started", "ranks", static_cast<int>(hosts.size()));
  for (const auto& [host, ranks] : by_host) std::printf("; %s: %s", host.c_str(), concat(ranks).c_str());
  std::printf("\n");
}

void print_disk(std::vector<Problem>& problems) {
  try {
    const DiskSpeed speed = disk_speed(".");
    std::printf("  %-12s %.1f GiB free here, writes %.0f MB/s with sync, reads %.0f MB/s\n",
                "disk",
                free_gib("."),
                speed.write_mb_s,
                speed.read_mb_s);
  } catch (const Error& error) {
    std::printf("  %-12s %.1f GiB free here\n", "disk", free_gib("."));
    problems.push_back({error.kind(), error.what()});
  }
}

struct FoundProblem {
  Problem problem;
  std::vector<int> ranks;
};

std::vector<FoundProblem> merged(const std::vector<std::string>& texts) {
  std::vector<FoundProblem> found;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    for (const auto& [kind, text] : split_records(texts[rank])) {
      const auto same =
          std::find_if(found.begin(), found.end(), [&](const FoundProblem& f) { return f.problem.text == text; });
      if (same == found.end()) {
        found.push_back({{static_cast<ErrorKind>(std::stoi(kind)), text}, {static_cast<int>(rank)}});
      } else {
        same->ranks.push_back(static_cast<int>(rank));
      }
    }
  }
  return found;
}

int print_problems(const std::vector<FoundProblem>& found, int size, const std::string& config) {
  if (found.empty()) {
    std::printf("nothing found that would fail%s\n", config.empty() ? "; --config FILE looks at a run too" : "");
    return 0;
  }
  for (size_t i = 0; i < found.size(); ++i)
    std::printf("%s: %s%s\n",
                i == 0 ? "the first thing that would fail" : "then",
                ranks_text(found[i].ranks, size).c_str(),
                found[i].problem.text.c_str());
  return exit_code(found.front().problem.kind);
}

}  // namespace

int print_version() {
  if (world_rank() != 0) return 0;
  std::cout << version_text();
  return 0;
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, length);
  return version.substr(0, version.find_first_of(",\n"));
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return concat(static_cast<int>(major), ".", static_cast<int>(minor), ".", static_cast<int>(release));
}

std::string version_text() {
  std::string text = concat("trainer ", program_version(), " (commit ", git_commit(), ")\n");
  const std::pair<const char*, std::string> lines[] = {{"torch   ", kTorchVersion},
                                                       {"MPI     ", mpi_version()},
                                                       {"HDF5    ", hdf5_version()},
                                                       {"NCCL    ", nccl_version()},
                                                       {"kernels ", kCudaKernels}};
  for (const auto& [name, value] : lines) text += concat("  ", name, value, "\n");
  return text;
}

int doctor(const Arguments& arguments) {
  const Place place = place_of_rank();
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::pair<std::string, std::string>> facts;
  for (const Fact& fact : machine_facts(std::max(1, cores / place.local_size)))
    facts.emplace_back(fact.name, fact.value);
  for (const Fact& fact : gpu_facts()) facts.emplace_back(fact.name, fact.value);
  std::vector<Problem> own;
  if (!arguments.config.empty()) own = config_problems(arguments, place.size, place.local_size);
  const std::vector<std::string> hosts = gather_texts(host_name(), place);
  const std::vector<std::string> all_facts = gather_texts(join_records(facts), place);
  if (place.rank == 0) {
    print_facts(all_facts);
    print_mapping(hosts);
    print_disk(own);
  }
  std::vector<std::pair<std::string, std::string>> records;
  for (const Problem& problem : own) records.emplace_back(concat(static_cast<int>(problem.kind)), problem.text);
  const std::vector<std::string> all_problems = gather_texts(join_records(records), place);
  int code = 0;
  if (place.rank == 0) code = print_problems(merged(all_problems), place.size, arguments.config);
  std::fflush(stdout);
  MPI_Bcast(&code, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return code;
}

}  // namespace hanok
