// The groups that a rank belongs to, built from the mesh, and the factory of their back-ends.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "parallel/comm.h"
#include "parallel/mesh.h"

namespace hanok {

class Error;

enum class Backend { kThread, kMpi, kNccl };

/// All groups of one rank. Never null: a group of one rank is a Comm of size 1.
struct Groups {
  Mesh mesh{MeshShape{}};
  int rank = 0;
  MeshCoordinates at;
  bool sequence_parallel = false;  // activations between tp layers are cut along T (or P)
  std::shared_ptr<Comm> tp, cp, dp, pp, ep, etp, grad, expert_grad, loss, stage, world;
  /// Host-side control messages (config hash, stop flags, exceptions): always on CPU tensors (threads or MPI).
  std::shared_ptr<Comm> control;
};

/// What can open groups: the launcher's MPI world, or a ThreadWorld of N ranks in one process.
/// `ranks` are world ranks; called by every rank of the world with the same arguments in the same order; returns null
/// to ranks that are not in `ranks`.
class World {
 public:
  virtual ~World() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::shared_ptr<Comm> open(std::string_view kind, const std::vector<int>& ranks) = 0;
  /// Same, but for host tensors whatever the device back-end.
  virtual std::shared_ptr<Comm> open_host(std::string_view kind, const std::vector<int>& ranks) = 0;
};

/// errors: kConfig if mesh.world() != world.size().
Groups make_groups(World& world, const Mesh& mesh, bool sequence_parallel);
/// One rank alone: every group has size 1.
Groups make_single_groups();
/// The place of one rank in a layout that nobody runs: shapes and cuts can be asked for, operations are kComm. For
/// `plan`.
Groups make_planned_groups(const Mesh& mesh, int rank, bool sequence_parallel);

/// N ranks as N threads of this process; the reference back-end. `body(world)` runs once per rank. An exception in one
/// rank ends the waits of the others with kComm, and is rethrown here (the first one thrown). CPU tensors only. The
/// ranks share the process's intra-op threads evenly (each at least one).
void run_on_threads(int size, const std::function<void(World&)>& body, double stall_timeout_s = 300);

/// Memory that a rank's GPU lends to each neighbour of a pipeline on its host, for what that one has offered.
inline constexpr int64_t kLinkBytes = (int64_t{64} << 20) + 4096;

/// MPI_COMM_WORLD (MPI must be initialised, MPI_THREAD_MULTIPLE or SERIALIZED). Backend::kNccl opens NCCL communicators
/// on the current CUDA device for open(), and MPI ones for open_host().
/// `end_process`: on GPUs the host does not wait for operations, so what hangs or fails there is found by a thread of
/// its own, which calls this with a kComm error, once; it must not return, for work on the GPU cannot be called back.
/// Empty: the error is logged, and MPI_Abort ends all ranks with its exit code.
/// `peer_links`: pipeline neighbours may write to each other's GPU where it can be reached (parallel/peer_link.h).
std::unique_ptr<World> make_mpi_world(Backend backend,
                                      double stall_timeout_s,
                                      std::function<void(const Error&)> end_process = {},
                                      bool peer_links = true);

}  // namespace hanok
