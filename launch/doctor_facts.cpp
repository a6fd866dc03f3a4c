#include "launch/doctor_facts.h"

#include <fcntl.h>
#include <link.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "launch/bootstrap.h"
#include "launch/device.h"
#include "launch/version.h"
#include "trainer/version.h"

namespace hanok {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

std::string gib_text(double gib) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f GiB", gib);
  return text;
}

/// Files of the libraries that this process has loaded, links followed: their names tell the versions.
std::vector<std::string> loaded_libraries() {
  std::vector<std::string> files;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        if (info->dlpi_name && *info->dlpi_name)
          static_cast<std::vector<std::string>*>(out)->push_back(info->dlpi_name);
        return 0;
      },
      &files);
  return files;
}

std::string library_versions() {
  const std::vector<std::string> files = loaded_libraries();
  std::string text;
  for (const char* name : {"glog", "gflags", "yaml-cpp", "hdf5", "jpeg", "png16", "webp", "pcre2-8", "utf8proc"}) {
    for (const std::string& file : files) {
      const std::string base = std::filesystem::path(file).filename().string();
      if (base.rfind(concat("lib", name), 0) != 0) continue;
      std::error_code missing;
      const std::string real = std::filesystem::canonical(file, missing).filename().string();
      const size_t version = real.find(".so.");
      text += concat(text.empty() ? "" : ", ",
                     name,
                     " ",
                     version == std::string::npos ? "(version unknown)" : real.substr(version + 4));
      break;
    }
  }
  return text;
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "unknown processor";
}

std::string limit_text(int resource, double unit, const char* name) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0) return "";
  if (limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return concat(static_cast<int64_t>(static_cast<double>(limit.rlim_cur) / unit), name);
}

struct Stopwatch {
  double start = now_s();
  double seconds() const { return now_s() - start; }
};

/// A file that is gone when this object is.
class ScratchFile {
 public:
  explicit ScratchFile(const std::string& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) {
    HANOK_REQUIRE(descriptor_ >= 0, kIo) << "file system: got \"" << std::strerror(errno)
                                         << "\", expected a folder to write in; " << path
                                         << "; run from a folder that you may write to";
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() {
    ::close(descriptor_);
    ::unlink(path_.c_str());
  }
  int descriptor() const { return descriptor_; }

 private:
  std::string path_;
  int descriptor_;
};

}  // namespace

std::string write_fault(const std::string& folder) {
  // Not access(2): root may write everywhere, by its word.
  const std::string path = concat(folder, "/.doctor.", static_cast<int>(getpid()), ".", world_rank());
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) return std::strerror(errno);
  ::close(descriptor);
  ::unlink(path.c_str());
  return "";
}

double free_gib(const std::string& folder) {
  struct statvfs disk = {};
  if (statvfs(folder.c_str(), &disk) != 0) return 0;
  return static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize) / kGiB;
}

DiskSpeed disk_speed(const std::string& folder) {
  constexpr size_t kBlock = 4 << 20;
  constexpr int kBlocks = 64, kBlocksPerSync = 8;
  constexpr double kSeconds = 1;
  const ScratchFile file(concat(folder, "/.doctor.", static_cast<int>(getpid())));
  std::vector<char> block(kBlock);
  uint64_t noise = 0x9e3779b97f4a7c15;  // what compresses would flatter some file systems
  for (char& byte : block) byte = static_cast<char>((noise = noise * 6364136223846793005u + 1) >> 56);
  const auto sync = [&] {
    HANOK_REQUIRE(::fdatasync(file.descriptor()) == 0, kIo)
        << "file system: got \"" << std::strerror(errno) << "\" when data were to reach the disk; " << folder
        << "; free some space";
  };
  Stopwatch writing;
  int blocks = 0;
  while (blocks < kBlocks && writing.seconds() < kSeconds) {
    const ssize_t written = ::write(file.descriptor(), block.data(), kBlock);
    HANOK_REQUIRE(written == static_cast<ssize_t>(kBlock), kIo)
        << "file system: got \"" << (written < 0 ? std::strerror(errno) : "a short write")
        << "\", expected room for 256 MiB; " << folder << "; free some space";
    if (++blocks % kBlocksPerSync == 0) sync();
  }
  sync();
  const double megabytes = static_cast<double>(kBlock) / 1e6;
  DiskSpeed speed{.write_mb_s = blocks * megabytes / writing.seconds()};
  ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);  // or memory would be read, not the disk
  ::lseek(file.descriptor(), 0, SEEK_SET);
  Stopwatch reading;
  int read = 0;
  while (read < blocks && reading.seconds() < kSeconds &&
         ::read(file.descriptor(), block.data(), kBlock) == static_cast<ssize_t>(kBlock))
    ++read;
  speed.read_mb_s = read * megabytes / reading.seconds();
  return speed;
}

std::vector<Fact> machine_facts(int threads_of_rank) {
  std::vector<Fact> facts;
  facts.push_back(
      {"trainer", concat(program_version(), " (commit ", git_commit().empty() ? "unknown" : git_commit(), ")")});
  facts.push_back({"compiler", concat("g++ ", __VERSION__)});
  facts.push_back({"torch", kTorchVersion});
  facts.push_back({"kernels", kCudaKernels});
  for (const auto& [name, value] : accelerator_versions()) facts.push_back({name, value});
  facts.push_back({"MPI", mpi_version()});
  facts.push_back({"HDF5", hdf5_version()});
  facts.push_back({"libraries", library_versions()});
  struct sysinfo memory = {};
  ::sysinfo(&memory);
  facts.push_back({"CPU",
                   concat(cpu_name(),
                          ", ",
                          static_cast<int>(std::thread::hardware_concurrency()),
                          " cores, ",
                          threads_of_rank,
                          " threads a rank, ",
                          gib_text(static_cast<double>(memory.totalram) * memory.mem_unit / kGiB))});
  facts.push_back({"limits",
                   concat("open files ",
                          limit_text(RLIMIT_NOFILE, 1, ""),
                          ", locked memory ",
                          limit_text(RLIMIT_MEMLOCK, 1024, " KiB"),
                          ", stack ",
                          limit_text(RLIMIT_STACK, 1024, " KiB"),
                          ", file size ",
                          limit_text(RLIMIT_FSIZE, 1 << 20, " MiB"),
                          ", core files ",
                          limit_text(RLIMIT_CORE, 1024, " KiB"))});
  struct statvfs shared = {};
  std::string shared_text = "absent";
  if (statvfs("/dev/shm", &shared) == 0) {
    const double gib = static_cast<double>(shared.f_blocks) * static_cast<double>(shared.f_frsize) / kGiB;
    shared_text = gib_text(gib);
    if (gib < 0.5) shared_text += "; MPI and NCCL may need more: start the container with --shm-size=1g";
  }
  facts.push_back({"/dev/shm", shared_text});
  return facts;
}

std::vector<Fact> gpu_facts() {
  const std::vector<DeviceInfo> gpus = visible_gpus();
  if (gpus.empty()) return {{"GPUs", "none visible; training runs on the CPU"}};
  std::vector<Fact> facts;
  for (size_t i = 0; i < gpus.size(); ++i) {
    const DeviceInfo& gpu = gpus[i];
    const char* means = gpu.major >= 9   ? "bfloat16; attention by cuDNN's graph kernels"
                        : gpu.major >= 8 ? "bfloat16; attention by flash kernels"
                                         : "no bfloat16: float32; attention by memory-efficient kernels";
    facts.push_back({concat("GPU ", static_cast<int>(i)),
                     concat(gpu.name,
                            ", ",
                            gib_text(static_cast<double>(gpu.memory_bytes) / kGiB),
                            ", capability ",
                            gpu.major,
                            ".",
                            gpu.minor,
                            ": ",
                            means)});
  }
  std::string apart;
  for (size_t a = 0; a < gpus.size(); ++a)
    for (size_t b = 0; b < gpus.size(); ++b)
      if (a != b && !reads_peer(static_cast<int>(a), static_cast<int>(b)))
        apart += concat(apart.empty() ? "" : ", ", static_cast<int>(a), "-", static_cast<int>(b));
  if (gpus.size() > 1)
    facts.push_back({"peer access",
                     apart.empty() ? std::string("every GPU reads every other's memory")
                                   : concat("through the host between GPUs ", apart)});
  return facts;
}

}  // namespace hanok
