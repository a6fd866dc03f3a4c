// From mpirun to a world of ranks with devices, logging and signals.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "configs/schema/config.h"
#include "parallel/groups.h"

namespace hanok {

/// Lives as long as the program talks to other ranks.
class Bootstrap {
 public:
  /// MPI_Init, device by local rank, CPU threads, logging.
  /// errors: kDevice when a node has more ranks than visible GPUs, or device: cuda and there is none; kComm if MPI
  /// fails
  explicit Bootstrap(const RunConfig& config);
  ~Bootstrap();
  World& world();
  at::Device device() const { return device_; }
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  /// True once a signal asked this rank to save and stop.
  static bool stop_requested();
  static std::string stop_reason();

 private:
  std::unique_ptr<World> world_;
  at::Device device_ = at::kCPU;
  int local_rank_ = 0, local_size_ = 1;
};

/// The first thing of all, before main(): from then on SIGTERM, SIGUSR1 and SIGINT ask for a stop, a second SIGINT ends
/// at once, and a full disk or a reader that left is an error of the write.
void install_signal_handlers();
/// For commands that nothing is lost by: the same signals end the program, and one that came already ends it now.
void let_signals_end_the_program();
/// Ends this rank with code 0 as asked by a signal; all ranks call it. "nothing" and the like: what is left to say.
[[noreturn]] void end_stopped(const std::string& what_is_kept);

/// World rank and size without a Bootstrap (0 and 1 before MPI runs).
int world_rank();
int world_size();
/// Ends all ranks with this code. Ranks other than 0 wait a moment first, so that an error that all of them found is
/// said once.
[[noreturn]] void end_all_ranks(int code, const std::string& message);

/// Reads --config with --set, and checks it against the number of ranks.
RunConfig load_run_config(const struct Arguments& arguments, int world_size);

/// Version texts: program, git commit, torch, MPI, NCCL, CUDA, HDF5.
std::string version_text();
std::string mpi_version();
std::string hdf5_version();

}  // namespace hanok
