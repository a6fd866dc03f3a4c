// A stream of the device beside the one that computes.
#pragma once

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

#include <memory>
#include <optional>

#include "base/tensor.h"

namespace hanok {

/// Work that the device does beside the current stream. On a CPU there is no such thing: work is done where it is asked
/// for, at once.
class SideStream {
 public:
  /// `urgent`: its kernels go before those of other streams where both wait.
  SideStream(at::Device device, bool urgent);
  bool is_apart() const { return stream_.has_value(); }

  /// Calls work() with the side stream as the current one, after everything that the current stream was given so far.
  /// Memory that it allocates belongs to the side stream.
  template <class Work>
  void run(const Work& work) {
    if (stream_) follow();
    run_ahead(work);
  }
  /// The same without waiting for the current stream.
  template <class Work>
  void run_ahead(const Work& work) {
    if (!stream_) return work();
    const c10::StreamGuard guard(*stream_);
    work();
  }

  /// A place in the side stream that the current stream can wait for; then nothing waits on the host.
  class Mark {
   public:
    void wait() const;
    void wait_on_host() const;  // from any thread

   private:
    friend class SideStream;
    std::shared_ptr<c10::Event> event_;
    at::Device device_ = at::kCPU;
  };
  /// After everything that the side was given so far.
  Mark mark();

 private:
  void follow();

  at::Device device_;
  std::optional<c10::Stream> stream_;
  std::optional<c10::Event> given_;
};

/// This thread's stream for what travels between ranks beside its work.
SideStream& travel_stream(at::Device device);

}  // namespace hanok
