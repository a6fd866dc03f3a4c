#include <H5public.h>
#include <mpi.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <thread>

#include "base/error.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "launch/device.h"
#include "launch/version.h"
#include "trainer/version.h"

namespace hanok {
namespace {

double gib(double bytes) {
  return bytes / (1024.0 * 1024.0 * 1024.0);
}

/// Writes and syncs 64 MiB in the working directory -> MB/s. errors: kIo
double write_speed(const std::string& path) {
  const std::vector<char> block(1 << 20, 'h');
  const auto start = std::chrono::steady_clock::now();
  FILE* file = std::fopen(path.c_str(), "wb");
  HANOK_REQUIRE(file != nullptr, kIo) << "file system: cannot write " << path
                                      << "; run from a folder that you may write to";
  bool whole = true;
  for (int i = 0; i < 64; ++i) whole = whole && std::fwrite(block.data(), 1, block.size(), file) == block.size();
  whole = std::fflush(file) == 0 && fsync(fileno(file)) == 0 && whole;
  std::fclose(file);
  std::remove(path.c_str());
  HANOK_REQUIRE(whole, kIo) << "file system: cannot write 64 MiB to " << path << "; free some space";
  return 64.0 * 1.048576 / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int print_version() {
  if (world_rank() != 0) return 0;
  std::cout << version_text();
  return 0;
}

std::string version_text() {
  char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(mpi, &length);
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return concat("trainer ",
                program_version(),
                " (commit ",
                git_commit(),
                ")\n",
                "  torch   ",
                kTorchVersion,
                "\n",
                "  MPI     ",
                std::string(mpi, length).substr(0, std::string(mpi).find(',')),
                "\n",
                "  HDF5    ",
                static_cast<int>(major),
                ".",
                static_cast<int>(minor),
                ".",
                static_cast<int>(release),
                "\n",
                "  NCCL    ",
                nccl_version(),
                "\n",
                "  kernels ",
                kCudaKernels,
                "\n");
}

int doctor(const Arguments& arguments) {
  if (world_rank() != 0) return 0;
  std::cout << version_text();
  std::vector<std::string> problems;
  const auto gpus = visible_gpus();
  std::cout << "  GPUs    " << (gpus.empty() ? "none visible; training runs on the CPU" : "") << "\n";
  for (const auto& gpu : gpus)
    std::printf("          %s, %.1f GiB, compute capability %d.%d%s\n",
                gpu.name.c_str(),
                gib(static_cast<double>(gpu.memory_bytes)),
                gpu.major,
                gpu.minor,
                gpu.major < 8 ? " (no bfloat16)" : "");
  std::printf("  CPU     %u cores\n", std::thread::hardware_concurrency());
  if (!gpus.empty() && world_size() > static_cast<int>(gpus.size()))
    problems.push_back(
        concat("ranks: got -np ", world_size(), ", expected at most ", gpus.size(), ", one for each GPU"));
  struct statvfs disk = {};
  if (statvfs(".", &disk) == 0) {
    const double free_gib = gib(static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize));
    std::printf("  disk    %.1f GiB free here", free_gib);
    if (free_gib < 1)
      problems.push_back("disk: got less than 1 GiB free in the working directory; checkpoints will not fit");
    try {
      std::printf(", writes %.0f MB/s with sync\n", write_speed(concat(".doctor.", static_cast<int>(getpid()))));
    } catch (const Error& error) {
      std::printf("\n");
      problems.push_back(error.what());
    }
  }
  if (!arguments.config.empty()) {
    try {
      load_run_config(arguments, world_size());
      std::cout << "  config  " << arguments.config << " is consistent\n";
    } catch (const Error& error) {
      problems.push_back(error.what());
    }
  }
  std::cout << (problems.empty() ? "nothing here would fail\n" : "would fail:\n");
  for (const auto& problem : problems) std::cout << "  " << problem << "\n";
  return problems.empty() ? 0 : exit_code(ErrorKind::kConfig);
}

}  // namespace hanok
