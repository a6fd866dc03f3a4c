#include "trainer/host_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/clock.h"
#include "base/cuda/pin.h"
#include "base/log.h"
#include "trainer/host_memory.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

constexpr int64_t kLargePage = int64_t{1} << 21;
constexpr double kGiB = 1 << 30;

int64_t page_bytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

void touch(std::byte* begin, int64_t size, int num_threads) {
  const int64_t large_pages = (size + kLargePage - 1) / kLargePage;
  const int64_t share = (large_pages + num_threads - 1) / num_threads * kLargePage;
  std::vector<std::jthread> threads;
  for (int64_t first = 0; first < size; first += share)
    threads.emplace_back([begin, first, last = std::min(first + share, size)] {
      for (int64_t at = first; at < last; at += page_bytes()) *reinterpret_cast<volatile char*>(begin + at) = 0;
    });
}

}  // namespace

HostBuffer::HostBuffer(int64_t bytes, at::Device device, std::string holds, HostBufferOptions options)
    : bytes_((bytes + page_bytes() - 1) / page_bytes() * page_bytes()),
      device_(device),
      holds_(std::move(holds)),
      options_(std::move(options)),
      num_threads_(helping_threads()) {
  assert(options_.piece_bytes % kLargePage == 0);
  making_.start([this] {
    try {
      make();
    } catch (const std::exception&) {  // of no use to anybody
      free();
      throw;
    }
  });
}

HostBuffer::~HostBuffer() {
  is_ending_ = true;
  making_.take();
  free();
}

void HostBuffer::make() {
  const double began = now_s();
  map();
  if (device_.is_cpu()) return require_room(bytes_);
  for (int64_t at = 0; at < bytes_ && !is_ending_; at += options_.piece_bytes) {
    const int64_t size = std::min(options_.piece_bytes, bytes_ - at);
    require_room(bytes_ - at);
    touch(begin_ + at, size, num_threads_);
    pin(at, size);
  }
  HANOK_VLOG(1) << "host memory for " << holds_ << ": " << printed("%.2f GiB", static_cast<double>(bytes_) / kGiB)
                << printed(", %.2f GiB pinned", static_cast<double>(pinned_bytes_) / kGiB)
                << printed(", in %.2f s", now_s() - began) << " by " << num_threads_ << " threads";
}

void HostBuffer::map() {
  const auto size = static_cast<size_t>(bytes_ + kLargePage);
  void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  HANOK_REQUIRE(mapped != MAP_FAILED, kDevice)
      << "host memory: got '" << std::strerror(errno) << "', expected "
      << printed("%.2f GiB", static_cast<double>(bytes_) / kGiB) << " for " << holds_
      << "; this host; look at its limits (ulimit -v, vm.overcommit_memory), or spread the ranks over more machines";
  mapped_ = mapped;
  const auto address = reinterpret_cast<uintptr_t>(mapped);
  begin_ = static_cast<std::byte*>(mapped) + (kLargePage - address % kLargePage) % kLargePage;
  // Both help and neither is needed: fewer faults, and a child that never copies what a device writes to.
  ::madvise(mapped, size, MADV_HUGEPAGE);
  ::madvise(mapped, size, MADV_DONTFORK);
}

/// Asked again before each piece, because other ranks of the host take theirs at the same time: what is kept spare is
/// a piece for each of eight.
void HostBuffer::require_room(int64_t rest) const {
  const double available = options_.available_bytes ? options_.available_bytes() : host_memory().available_bytes;
  const double needed = static_cast<double>(rest + std::min(bytes_, 8 * options_.piece_bytes));
  HANOK_REQUIRE(needed <= available, kDevice)
      << "host memory: got " << printed("%.2f GiB", available / kGiB) << " available, expected "
      << printed("%.2f GiB", needed / kGiB) << " for " << printed("%.2f", static_cast<double>(rest) / kGiB)
      << " of the " << printed("%.2f GiB", static_cast<double>(bytes_) / kGiB) << " that " << holds_
      << " takes, and some to spare; this host, whose other ranks take as much; spread the ranks over more machines, "
         "or free memory (/dev/shm counts), lower data.prefetch_steps, or raise the job's memory limit";
}

void HostBuffer::pin(int64_t begin, int64_t size) {
  if (is_refused_) return;
  const std::string refusal = pin_host_memory(begin_ + begin, static_cast<size_t>(size), device_);
  is_refused_ = !refusal.empty();
  if (!is_refused_) {
    pinned_bytes_ += size;
    return;
  }
  HANOK_LOG(WARNING) << "host memory: got '" << refusal << "' after "
                     << printed("%.2f GiB", static_cast<double>(pinned_bytes_) / kGiB) << " were pinned, expected "
                     << printed("%.2f GiB", static_cast<double>(bytes_) / kGiB) << "; " << holds_
                     << "; it is used as it is, and copies to it hold up training; look into the driver's log";
}

void HostBuffer::free() {
  for (int64_t at = 0; at < pinned_bytes_; at += options_.piece_bytes) {
    const std::string refusal = unpin_host_memory(begin_ + at, device_);
    if (!refusal.empty()) HANOK_LOG(WARNING) << "host memory: got '" << refusal << "' when it was unpinned";
  }
  pinned_bytes_ = 0;
  if (mapped_ != nullptr) ::munmap(mapped_, static_cast<size_t>(bytes_ + kLargePage));
  mapped_ = begin_ = nullptr;
}

Tensor HostBuffer::carve(at::ScalarType dtype, int64_t size) {
  const int64_t room = room_bytes(size * static_cast<int64_t>(c10::elementSize(dtype)));
  assert(begin_ != nullptr && used_ + room <= bytes_);
  const Tensor carved = at::from_blob(begin_ + used_, {size}, at::TensorOptions(dtype));
  used_ += room;
  return carved;
}

void HostBuffer::copy(const Tensor& to, const Tensor& from) const {
  const auto item = static_cast<int64_t>(to.element_size());
  const int64_t begin = static_cast<const std::byte*>(to.const_data_ptr()) - begin_;
  for (int64_t done = 0; done < to.numel();) {
    const int64_t left_of_piece = options_.piece_bytes - (begin + done * item) % options_.piece_bytes;
    const int64_t size = std::min(to.numel() - done, left_of_piece / item);
    to.narrow(0, done, size).copy_(from.narrow(0, done, size), /*non_blocking=*/true);
    done += size;
  }
}

}  // namespace hanok
