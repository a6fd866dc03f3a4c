#include "parallel/nccl_watchdog.h"

#include <algorithm>
#include <cmath>

namespace hanok {
namespace {

/// Errors of the stream count as passed: whoever uses the stream is told of them.
bool has_passed(cudaEvent_t event) {
  if (event == nullptr) return true;
  const bool passed = cudaEventQuery(event) != cudaErrorNotReady;
  cudaGetLastError();
  return passed;
}

bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

}  // namespace

NcclLane::NcclLane(std::string group,
                   std::vector<int> world_ranks,
                   std::shared_ptr<const ProgressLine> progress,
                   bool is_watched)
    : group_(std::move(group)),
      world_ranks_(std::move(world_ranks)),
      progress_(std::move(progress)),
      is_watched_(is_watched) {}

NcclLane::~NcclLane() {
  const auto destroy = [](const auto& flights) {
    for (const Flight& flight : flights)
      for (cudaEvent_t event : {flight.began, flight.ended})
        if (event != nullptr) cudaEventDestroy(event);
  };
  destroy(flying_);
  destroy(launched_);
  for (cudaEvent_t event : spare_) cudaEventDestroy(event);
}

/// Without the lock: a stream behind a collective that is stuck may be full, and the watchdog must see that.
cudaEvent_t NcclLane::recorded(cudaStream_t stream) {
  cudaEvent_t event = take_spare();
  if (event == nullptr) cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  cudaEventRecord(event, stream);
  return event;
}

cudaEvent_t NcclLane::take_spare() {
  const std::lock_guard lock(mutex_);
  if (spare_.empty()) return nullptr;
  const cudaEvent_t event = spare_.back();
  spare_.pop_back();
  return event;
}

NcclLane::Operation::Operation(NcclLane& lane, const CommCall& call, std::optional<cudaStream_t> stream)
    : lane_(lane), stream_(stream) {
  if (!lane.is_watched_ || (stream_ && is_captured(*stream_))) stream_.reset();
  const cudaEvent_t began = stream_ ? lane.recorded(*stream_) : nullptr;
  const std::lock_guard lock(lane.mutex_);
  const Flight flight{.call = call, .number = ++lane.count_, .began = began};
  lane.newest_ = call;
  lane.calling_ = flight;
}

NcclLane::Operation::~Operation() {
  const std::lock_guard lock(lane_.mutex_);
  if (!lane_.calling_) return;
  if (lane_.calling_->began != nullptr) lane_.spare_.push_back(lane_.calling_->began);
  lane_.calling_.reset();
}

void NcclLane::Operation::launched() {
  if (!stream_) return;
  const cudaEvent_t ended = lane_.recorded(*stream_);
  const std::lock_guard lock(lane_.mutex_);
  lane_.calling_->ended = ended;
  lane_.launched_.push_back(*lane_.calling_);
  lane_.calling_.reset();
}

void NcclLane::attach(ncclComm_t comm) {
  const std::lock_guard lock(mutex_);
  comm_ = comm;
}

std::optional<Error> NcclLane::asynchronous_error() {
  const std::lock_guard lock(mutex_);
  ncclResult_t state = ncclSuccess;
  if (comm_ == nullptr || ncclCommGetAsyncError(comm_, &state) != ncclSuccess) return std::nullopt;
  if (state == ncclSuccess || state == ncclInProgress) return std::nullopt;
  return comm_error(newest_,
                    concat("got ", ncclGetErrorString(state), ": ", ncclGetLastError(comm_), ", expected success"),
                    group_,
                    "NCCL",
                    "see the first error of the other ranks, or which of them was killed");
}

/// Operations of one communicator end in their order.
void NcclLane::drop_landed() {
  const auto first_flying =
      std::partition_point(flying_.begin(), flying_.end(), [](const Flight& f) { return has_passed(f.ended); });
  const std::lock_guard lock(mutex_);
  for (auto flight = flying_.begin(); flight != first_flying; ++flight) {
    spare_.push_back(flight->began);
    spare_.push_back(flight->ended);
  }
  flying_.erase(flying_.begin(), first_flying);
}

Error NcclLane::stalled(const CommCall& call, double stall_timeout_s) const {
  const std::vector<int> awaited =
      call.peer < 0 ? progress_->awaited(call.sequence) : std::vector<int>{world_ranks_[call.peer]};
  return comm_error(
      call,
      concat("got no answer from world ranks ", awaited, " in ", stall_timeout_s, " s, expected them to arrive"),
      group_,
      "NCCL",
      "look for the operation in which those ranks are, or raise the stall timeout");
}

std::optional<Error> NcclLane::look(double stall_timeout_s) {
  if (std::optional<Error> error = asynchronous_error()) return error;
  std::optional<Flight> calling;
  {
    const std::lock_guard lock(mutex_);
    flying_.insert(flying_.end(), launched_.begin(), launched_.end());
    launched_.clear();
    calling = calling_;
  }
  drop_landed();
  if (flying_.empty() && !calling) return std::nullopt;
  const Flight& oldest = flying_.empty() ? *calling : flying_.front();
  if (oldest.number != seen_) running_since_.reset();
  seen_ = oldest.number;
  const Clock::time_point now = Clock::now();
  // Earlier work of the stream is no wait for another rank.
  if (!running_since_ && has_passed(oldest.began)) running_since_ = now;
  if (!running_since_ || std::chrono::duration<double>(now - *running_since_).count() <= stall_timeout_s)
    return std::nullopt;
  return stalled(oldest.call, stall_timeout_s);
}

NcclWatchdog::NcclWatchdog(double stall_timeout_s, std::function<void(const Error&)> end_process)
    : stall_timeout_s_(stall_timeout_s), end_process_(std::move(end_process)) {}

NcclWatchdog::~NcclWatchdog() {
  {
    const std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<NcclLane> NcclWatchdog::open_lane(std::string group,
                                                  std::vector<int> world_ranks,
                                                  std::shared_ptr<const ProgressLine> progress) {
  const bool is_watched = std::isfinite(stall_timeout_s_);
  auto lane = std::make_shared<NcclLane>(std::move(group), std::move(world_ranks), std::move(progress), is_watched);
  if (!is_watched) return lane;
  const std::lock_guard lock(mutex_);
  std::erase_if(lanes_, [](const std::weak_ptr<NcclLane>& other) { return other.expired(); });
  lanes_.push_back(lane);
  if (!thread_.joinable()) {
    int device = 0;
    cudaGetDevice(&device);
    thread_ = std::thread([this, device] { watch(device); });
  }
  return lane;
}

void NcclWatchdog::watch(int device) {
  cudaSetDevice(device);
  // Another thread may capture a graph, during which this one's queries would be refused.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const auto tick = std::chrono::duration<double>(std::clamp(stall_timeout_s_ / 10, 0.01, 0.5));
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, tick, [this] { return is_ending_; })) {
    std::vector<std::shared_ptr<NcclLane>> lanes;
    for (const std::weak_ptr<NcclLane>& lane : lanes_)
      if (std::shared_ptr<NcclLane> open = lane.lock()) lanes.push_back(std::move(open));
    lock.unlock();
    for (const std::shared_ptr<NcclLane>& lane : lanes) {
      const std::optional<Error> error = lane->look(stall_timeout_s_);
      if (!error) continue;
      end_process_(*error);
      return;
    }
    lanes.clear();
    lock.lock();
  }
}

}  // namespace hanok
