// One rank does not do what the others expect: mpirun -np N fault_probe mpi|nccl MODE TIMEOUT_S. The last rank is the
// one at fault. modes: absent (never comes), stall (stops coming), take (offers nothing), recv (sends nothing),
// kill (dies of SIGKILL).
#include <ATen/ATen.h>
#include <mpi.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "tests/parallel/comm_suite.h"
#include "tests/support/processes.h"

namespace hanok {
namespace {

/// The host waits for the sum, as a training loop waits for its loss.
void sum(Comm& comm, at::Device device) {
  Tensor x = at::ones({1000}, at::TensorOptions().device(device));
  comm.all_reduce(x, Reduce::kSum);
  if (x[0].item<float>() != static_cast<float>(comm.size())) std::cerr << "a wrong sum\n";
}

void run(World& world, at::Device device, const std::string& mode) {
  std::vector<int> all(world.size());
  for (int rank = 0; rank < world.size(); ++rank) all[rank] = rank;
  const auto comm = world.open("tp", all);
  const int last = world.size() - 1;
  const bool at_fault = world.rank() == last;
  const auto stay_away = [] { std::this_thread::sleep_for(std::chrono::seconds(300)); };
  if (mode == "absent" && at_fault) stay_away();
  for (int i = 0; i < 3; ++i) sum(*comm, device);
  Tensor x = at::ones({1000}, at::TensorOptions().device(device));
  if (mode == "take") {
    // The first message passes: what hangs is the second.
    for (int i = 0; i < 2; ++i) {
      if (at_fault) {
        i == 0 ? comm->offer(x, 0) : stay_away();
      } else if (world.rank() == 0) {
        comm->take(x, last);
        x.cpu();
      } else if (i == 0) {
        comm->offer(x, (world.rank() + 1) % world.size());  // opening the channels is collective
      }
    }
  }
  if (mode == "recv" && world.rank() == 0) {
    comm->recv(x, last);
    x.cpu();
  }
  if (at_fault) mode == "kill" ? std::raise(SIGKILL) : (stay_away(), 0);
  for (;;) sum(*comm, device);
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  using hanok::Backend;
  int level = 0, rank = 0, size = 1;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  hanok::start_logging("fault_probe", rank, size, "", 0);
  if (argc != 4) return 1;
  try {
    const bool on_gpu = std::string(argv[1]) == "nccl";
    const at::Device device = on_gpu ? hanok::own_gpu() : at::Device(at::kCPU);
    const c10::OptionalDeviceGuard guard(device);
    const auto world = hanok::make_mpi_world(on_gpu ? Backend::kNccl : Backend::kMpi, std::atof(argv[3]));
    hanok::run(*world, device, argv[2]);
  } catch (const hanok::Error& error) {
    HANOK_LOG(ERROR) << error.what();
    MPI_Abort(MPI_COMM_WORLD, hanok::exit_code(error.kind()));
  }
}
