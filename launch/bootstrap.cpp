#include "launch/bootstrap.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

#include "base/log.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "launch/command.h"
#include "launch/device.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

std::atomic<int> stop_signal{0};

// Only an atomic is set here; the loop agrees on the step at which all ranks stop.
extern "C" void on_stop_signal(int number) {
  int none = 0;
  if (!stop_signal.compare_exchange_strong(none, number) && number == SIGINT)
    _exit(130);  // a second Ctrl-C ends at once
}

constexpr int kStopSignals[] = {SIGTERM, SIGUSR1, SIGINT};

bool mpi_is_running() {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started && !ended;
}

/// `device: auto` is decided on every node for itself.
void require_one_kind_of_device(at::Device device) {
  int on_gpu = device.is_cuda() ? 1 : 0, total = 0;
  HANOK_REQUIRE(MPI_Allreduce(&on_gpu, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD) == MPI_SUCCESS, kComm)
      << "MPI: cannot sum over the world; run trainer doctor";
  HANOK_REQUIRE(total == 0 || total == world_size(), kDevice)
      << "device: got GPUs for " << total << " of " << world_size()
      << " ranks, expected them for all or none; the nodes differ; look at each with trainer doctor, leave out the "
      << "nodes without a GPU, or set device: cpu";
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESTART;
  for (const int number : kStopSignals) sigaction(number, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a file beyond `ulimit -f` is an error of the write that wanted it, like a full disk
}

void let_signals_end_the_program() {
  for (const int number : kStopSignals) signal(number, SIG_DFL);
  if (const int number = stop_signal.load()) raise(number);
}

int world_rank() {
  int rank = 0;
  if (mpi_is_running()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int world_size() {
  int size = 1;
  if (mpi_is_running()) MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

Bootstrap::Bootstrap(const RunConfig& config) {
  MPI_Comm node;
  HANOK_REQUIRE(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node) == MPI_SUCCESS,
                kComm)
      << "MPI: cannot split the world by node; run trainer doctor";
  MPI_Comm_rank(node, &local_rank_);
  MPI_Comm_size(node, &local_size_);
  MPI_Comm_free(&node);
  start_logging("trainer", world_rank(), world_size(), "", static_cast<int>(config.log.verbosity));
  const char* terminal = std::getenv("TERM");
  const bool takes_codes = terminal && std::string_view(terminal) != "dumb";
  const char* no_colour = std::getenv("NO_COLOR");  // no-color.org: whatever its value, unless it is empty
  use_terminal({.bar = takes_codes, .colour = takes_codes && !(no_colour && *no_colour)});
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  at::set_num_threads(config.threads > 0 ? static_cast<int>(config.threads) : std::max(1, cores / local_size_));
  if (config.deterministic) {
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // cuBLAS reads it when it starts
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  }
  // CUDA reads it when it starts. With fewer queues than streams, work behind a message that waits for its taker could
  // wait with it.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0);
  device_ = bind_device(config.device, local_rank_, local_size_);
  require_one_kind_of_device(device_);
  // Whoever keeps NCCL from reaching other GPUs' memory, because the machine cannot be trusted with it, means us as
  // well.
  const char* no_p2p = std::getenv("NCCL_P2P_DISABLE");
  const bool peer_links = no_p2p == nullptr || std::string_view(no_p2p) != "1";
  world_ =
      make_mpi_world(device_.is_cuda() ? Backend::kNccl : Backend::kMpi, config.log.stall_timeout_s, {}, peer_links);
}

Bootstrap::~Bootstrap() = default;

World& Bootstrap::world() {
  return *world_;
}
bool Bootstrap::stop_requested() {
  return stop_signal.load() != 0;
}
std::string Bootstrap::stop_reason() {
  switch (stop_signal.load()) {
    case SIGTERM: return "SIGTERM";
    case SIGUSR1: return "SIGUSR1";
    case SIGINT: return "SIGINT";
    default: return "";
  }
}

namespace {

/// True when every rank came here within the time: then the job can end in order, at once and without mpirun's own
/// noise.
bool all_ranks_failed(double seconds) {
  MPI_Request request;
  if (MPI_Ibarrier(MPI_COMM_WORLD, &request) != MPI_SUCCESS) return false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  int done = 0;
  while (!done && std::chrono::steady_clock::now() < deadline) {
    if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return false;
    if (!done) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return done != 0;
}

struct Failure {
  unsigned long long message_hash;
  int code;
};

}  // namespace

void end_all_ranks(int code, const std::string& message) {
  const int rank = world_rank();
  if (!mpi_is_running() || !all_ranks_failed(2)) {
    HANOK_LOG(ERROR) << message;
    if (mpi_is_running()) MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
  }
  // The same message is said once, by the first rank that has it. The cause decides the code, not those who lost their
  // peer.
  std::vector<Failure> failures(world_size());
  failures[rank] = {std::hash<std::string>{}(message), code};
  MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, failures.data(), sizeof(Failure), MPI_BYTE, MPI_COMM_WORLD);
  const auto same = [&](const Failure& f) { return f.message_hash == failures[rank].message_hash; };
  if (std::find_if(failures.begin(), failures.end(), same) == failures.begin() + rank) HANOK_LOG(ERROR) << message;
  const auto cause = std::find_if(
      failures.begin(), failures.end(), [](const Failure& f) { return f.code != exit_code(ErrorKind::kComm); });
  alarm(10);  // a broken network may keep MPI_Finalize waiting
  MPI_Finalize();
  _exit(cause == failures.end() ? code : cause->code);
}

void end_stopped(const std::string& what_is_kept) {
  const std::string reason = Bootstrap::stop_reason();  // empty on a rank that only heard of it
  HANOK_LOG_RANK0(INFO) << "stopped" << (reason.empty() ? "" : " by " + reason) << "; " << what_is_kept;
  std::fflush(stdout);
  alarm(10);  // a broken network may keep MPI_Finalize waiting
  if (mpi_is_running()) MPI_Finalize();
  _exit(0);
}

RunConfig load_run_config(const Arguments& arguments, int world_size) {
  HANOK_REQUIRE(!arguments.config.empty(), kConfig)
      << "--config: got none, expected a YAML file; examples are in configs/run/";
  RunConfig config = read_config(arguments.config, arguments.sets);
  check_config(config, world_size);
  return config;
}

}  // namespace hanok
