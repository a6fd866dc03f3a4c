// Operations of NCCL from their call to their end on the GPU, watched from a thread: the host never waits for them.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/comm_base.h"

namespace hanok {

/// What is under way on one communicator. One thread at a time calls operations; the watchdog looks from its own.
class NcclLane {
 public:
  NcclLane(std::string group,
           std::vector<int> world_ranks,
           std::shared_ptr<const ProgressLine> progress,
           bool is_watched);
  ~NcclLane();
  NcclLane(const NcclLane&) = delete;
  NcclLane& operator=(const NcclLane&) = delete;

  /// One call of NCCL. `stream` absent: it ends when the call returns, as setting up a communicator does.
  class Operation {
   public:
    Operation(NcclLane& lane, const CommCall& call, std::optional<cudaStream_t> stream);
    ~Operation();
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;
    /// The call has returned: from here on the operation ends when the stream has passed it.
    void launched();

   private:
    NcclLane& lane_;
    std::optional<cudaStream_t> stream_;  // absent as well while a graph is captured: nothing runs then
  };

  /// The communicator whose asynchronous errors are read; null before it is destroyed.
  void attach(ncclComm_t comm);

 private:
  friend class NcclWatchdog;
  using Clock = std::chrono::steady_clock;
  struct Flight {
    CommCall call;
    int64_t number = 0;
    cudaEvent_t began = nullptr, ended = nullptr;  // null: at once
  };

  /// What is wrong at this moment. The watchdog's thread only.
  std::optional<Error> look(double stall_timeout_s);
  void drop_landed();
  std::optional<Error> asynchronous_error();
  Error stalled(const CommCall& call, double stall_timeout_s) const;
  cudaEvent_t recorded(cudaStream_t stream);
  cudaEvent_t take_spare();  // null: there is none

  const std::string group_;
  const std::vector<int> world_ranks_;
  const std::shared_ptr<const ProgressLine> progress_;
  const bool is_watched_;
  std::mutex mutex_;  // of what follows
  ncclComm_t comm_ = nullptr;
  int64_t count_ = 0;
  CommCall newest_;
  std::optional<Flight> calling_;
  std::vector<Flight> launched_;
  std::vector<cudaEvent_t> spare_;
  // Of the watchdog's thread.
  std::deque<Flight> flying_;
  int64_t seen_ = 0;                                // number of the oldest operation that has not ended
  std::optional<Clock::time_point> running_since_;  // the stream has reached it
};

/// Looks at all lanes. The first that is stuck (its operation was reached by the stream, and did not end for
/// `stall_timeout_s`) or whose communicator reports an error ends the process.
class NcclWatchdog {
 public:
  /// Infinite `stall_timeout_s`: nothing is watched. `end_process` is called from the watchdog's thread, once.
  NcclWatchdog(double stall_timeout_s, std::function<void(const Error&)> end_process);
  ~NcclWatchdog();
  NcclWatchdog(const NcclWatchdog&) = delete;
  NcclWatchdog& operator=(const NcclWatchdog&) = delete;

  std::shared_ptr<NcclLane> open_lane(std::string group,
                                      std::vector<int> world_ranks,
                                      std::shared_ptr<const ProgressLine> progress);

 private:
  void watch(int device);

  const double stall_timeout_s_;
  const std::function<void(const Error&)> end_process_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool is_ending_ = false;
  std::vector<std::weak_ptr<NcclLane>> lanes_;
  std::thread thread_;
};

}  // namespace hanok
