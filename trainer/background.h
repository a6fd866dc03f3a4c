// Work beside the thread that communicates. Private to trainer/.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <optional>
#include <thread>

#include "base/error.h"
#include "parallel/comm.h"

namespace hanok {

/// A task in a thread of its own; its Error, if any, is the result.
class Background {
 public:
  Background() = default;
  /// Waits for the task, except when an error passes: then this process is about to end, and a long write must not hold
  /// it up. So a task owns everything that it touches.
  ~Background();
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;
  void start(std::function<void()> task);
  /// Whether there is no task, or it ends within `patience`.
  bool wait(std::chrono::milliseconds patience) const;
  /// The result; call when wait() has said true.
  std::optional<Error> take();
  /// Waits for it no more: the process is about to end.
  void give_up() {
    if (thread_.joinable()) thread_.detach();
  }

 private:
  std::thread thread_;
  std::future<std::optional<Error>> result_;
};

/// Whether the tasks of all ranks have ended. Meets all ranks, so it comes back after `patience` or as soon as this
/// rank's own task ends, whichever is first, and then waits for nobody's work. Collective.
bool all_ended(const Background& own, std::chrono::milliseconds patience, Comm& control);

/// Runs `task` (empty: none) on every rank in the background and returns when all have ended. However long one takes,
/// the others meet it every few seconds: no wait exceeds the stall timeout. There every rank is asked for a wish to
/// stop (null: never); as soon as one has it, `stop` is set on all of them, and tasks should end soon. -> whether all
/// have ended: those that have not a few seconds later are given up, and only _exit() may follow. Collective. errors:
/// the first failure, on every rank
bool run_apart(const std::function<void()>& task,
               Comm& control,
               const std::function<bool()>& stop_requested,
               std::atomic<bool>& stop);

}  // namespace hanok
