#include "launch/bootstrap.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <mpi.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "base/log.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "launch/command.h"
#include "launch/device.h"

namespace hanok {
namespace {

std::atomic<int> stop_signal{0};

// Only an atomic is set here; the loop agrees on the step at which all ranks stop.
extern "C" void on_stop_signal(int number) {
  int none = 0;
  if (!stop_signal.compare_exchange_strong(none, number) && number == SIGINT)
    _exit(130);  // a second Ctrl-C ends at once
}

void install_signal_handlers() {
  struct sigaction action = {};
  action.sa_handler = on_stop_signal;
  action.sa_flags = SA_RESTART;
  for (const int number : {SIGTERM, SIGUSR1, SIGINT}) sigaction(number, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

bool mpi_is_running() {
  int started = 0, ended = 0;
  MPI_Initialized(&started);
  MPI_Finalized(&ended);
  return started && !ended;
}

}  // namespace

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
  install_signal_handlers();
  MPI_Comm node;
  HANOK_REQUIRE(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node) == MPI_SUCCESS,
                kComm)
      << "MPI: cannot split the world by node; run trainer doctor";
  MPI_Comm_rank(node, &local_rank_);
  MPI_Comm_size(node, &local_size_);
  MPI_Comm_free(&node);
  start_logging("trainer", world_rank(), world_size(), "", static_cast<int>(config.log.verbosity));
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  at::set_num_threads(config.threads > 0 ? static_cast<int>(config.threads) : std::max(1, cores / local_size_));
  device_ = bind_device(config.device, local_rank_, local_size_);
  world_ = make_mpi_world(device_.is_cuda() ? Backend::kNccl : Backend::kMpi, config.log.stall_timeout_s);
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

void end_all_ranks(int code, const std::string& message) {
  if (world_rank() != 0) std::this_thread::sleep_for(std::chrono::seconds(2));
  HANOK_LOG(ERROR) << message;
  if (mpi_is_running() && world_size() > 1) MPI_Abort(MPI_COMM_WORLD, code);
  _exit(code);  // static destructors of libraries may wait for peers that are gone
}

RunConfig load_run_config(const Arguments& arguments, int world_size) {
  HANOK_REQUIRE(!arguments.config.empty(), kConfig)
      << "--config: got none, expected a YAML file; examples are in configs/run/";
  RunConfig config = read_config(arguments.config, arguments.sets);
  check_config(config, world_size);
  return config;
}

}  // namespace hanok
