// Threads that turn a stream of jobs into a stream of results in the same order, a bounded number ahead.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace hanok {

/// ATen and OpenMP work alone in the calling thread from now on: the threads here are the parallelism.
void compute_single_threaded();

/// `next_job` is called by one thread at a time, in order, until it returns nothing. What it or `work` throws comes out
/// of take() at the place of that job, and ends the stream.
template <class Job, class Result>
class OrderedWorkers {
 public:
  OrderedWorkers(int64_t num_threads,
                 int64_t max_ahead,
                 std::function<std::optional<Job>()> next_job,
                 std::function<Result(Job&)> work)
      : max_ahead_(max_ahead), next_job_(std::move(next_job)), work_(std::move(work)) {
    for (int64_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run(); });
  }
  /// Waits for the jobs under way, no longer.
  ~OrderedWorkers() {
    {
      const std::lock_guard lock(mutex_);
      is_stopped_ = true;
    }
    room_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// The result of the next job; nothing when there are no more.
  std::optional<Result> take() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return results_.count(num_taken_) || (is_ended_ && num_taken_ == num_started_); });
    const auto it = results_.find(num_taken_);
    if (it == results_.end()) return std::nullopt;
    if (it->second.error) std::rethrow_exception(it->second.error);
    std::optional<Result> result(std::in_place, std::move(*it->second.value));
    results_.erase(it);
    ++num_taken_;
    room_.notify_all();
    return result;
  }

 private:
  struct Outcome {
    std::optional<Result> value;
    std::exception_ptr error;
  };

  struct Started {
    int64_t number = 0;
    std::optional<Job> job;
    std::exception_ptr error;
  };

  bool start(Started& started) {
    const std::lock_guard source(source_mutex_);
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] { return is_stopped_ || is_ended_ || num_started_ < num_taken_ + max_ahead_; });
      if (is_stopped_ || is_ended_) return false;
    }
    try {
      started.job = next_job_();
    } catch (const std::exception&) {
      started.error = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    is_ended_ = is_ended_ || !started.job;
    if (!started.job && !started.error) {
      ready_.notify_all();
      return false;
    }
    started.number = num_started_++;
    return true;
  }

  void run() {
    compute_single_threaded();
    for (Started started; start(started); started = {}) {
      Outcome outcome{.error = started.error};
      if (started.job) {
        try {
          outcome.value = work_(*started.job);
        } catch (const std::exception&) {
          outcome.error = std::current_exception();
        }
      }
      const std::lock_guard lock(mutex_);
      is_ended_ = is_ended_ || outcome.error;
      results_[started.number] = std::move(outcome);
      ready_.notify_all();
    }
  }

  const int64_t max_ahead_;
  const std::function<std::optional<Job>()> next_job_;
  const std::function<Result(Job&)> work_;
  std::mutex source_mutex_;  // around next_job_; taken before mutex_
  std::mutex mutex_;
  std::condition_variable room_, ready_;
  std::map<int64_t, Outcome> results_;
  int64_t num_started_ = 0, num_taken_ = 0;
  bool is_ended_ = false, is_stopped_ = false;
  std::vector<std::thread> threads_;  // last: they use all of the above
};

/// work(item) for every item, in at most so many threads, and returns when all are done; what the first of them in
/// order threw comes out.
template <class Item, class Work>
void work_in_threads(int64_t num_threads, const std::vector<Item>& items, const Work& work) {
  const auto count = static_cast<int64_t>(items.size());
  size_t next = 0;
  OrderedWorkers<const Item*, bool> workers(
      std::min(num_threads, count),
      count,
      [&]() { return next < items.size() ? std::optional<const Item*>(&items[next++]) : std::nullopt; },
      [&](const Item* item) {
        work(*item);
        return true;
      });
  for (int64_t done = 0; done < count; ++done) workers.take();
}

}  // namespace hanok
