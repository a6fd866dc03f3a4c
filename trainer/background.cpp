#include "trainer/background.h"

#include <exception>

#include "trainer/agree.h"

namespace hanok {

Background::~Background() {
  if (!thread_.joinable()) return;
  if (std::uncaught_exceptions() > 0) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

void Background::start(std::function<void()> task) {
  std::packaged_task<std::optional<Error>()> job([task = std::move(task)]() -> std::optional<Error> {
    try {
      task();
    } catch (const Error& error) {
      return error;
    } catch (const std::exception& error) {  // nothing may leave a thread
      return Error(ErrorKind::kIo, concat(error.what(), "; a thread in the background; check paths and disk"));
    }
    return std::nullopt;
  });
  result_ = job.get_future();
  thread_ = std::thread(std::move(job));
}

bool Background::wait(std::chrono::milliseconds patience) const {
  return !result_.valid() || result_.wait_for(patience) == std::future_status::ready;
}

std::optional<Error> Background::take() {
  if (!thread_.joinable()) return std::nullopt;
  thread_.join();
  return result_.get();
}

bool all_ended(const Background& own, std::chrono::milliseconds patience, Comm& control) {
  Tensor busy = at::scalar_tensor(int64_t{!own.wait(patience)}, at::kLong);
  control.all_reduce(busy, Reduce::kSum);
  return busy.item<int64_t>() == 0;
}

bool run_apart(const std::function<void()>& task,
               Comm& control,
               const std::function<bool()>& stop_requested,
               std::atomic<bool>& stop) {
  constexpr auto kHeartbeat = std::chrono::seconds(2);
  constexpr int kPatience = 3;  // heartbeats
  Background own;
  if (task) own.start(task);
  int waited = 0;
  while (!all_ended(own, kHeartbeat, control)) {
    if (!stop) {
      Tensor wish = at::scalar_tensor(int64_t{stop_requested && stop_requested()}, at::kLong);
      control.all_reduce(wish, Reduce::kMax);
      stop = wish.item<int64_t>() != 0;
    } else if (++waited == kPatience) {
      own.give_up();
      return false;
    }
  }
  if (const auto failure = first_failure(own.take(), control)) throw *failure;
  return true;
}

}  // namespace hanok
