// Counts the bytes of live CPU tensors (or meta tensors, which have sizes but no memory) and their peak.
#pragma once

#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>

namespace hanok {

/// Stands in for the allocator of one device while it lives. One at a time; tensors must not outlive the process's
/// last use of it, so it is best a static of the test.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::DeviceType device) : device_(device), inner_(c10::GetAllocator(device)) {
    if (device == c10::DeviceType::CPU) cpu_ = this;
    c10::SetAllocator(device, this, 255);
  }
  c10::DataPtr allocate(size_t size) override {
    count(static_cast<int64_t>(size));
    if (device_ == c10::DeviceType::Meta) return {nullptr, new Meta{this, size}, &release_meta, device_};
    void* data = size ? inner_->raw_allocate(size) : nullptr;
    const std::lock_guard lock(mutex_);
    if (data) sizes_[data] = static_cast<int64_t>(size);
    return {data, data, &release_cpu, device_};
  }
  c10::DeleterFnPtr raw_deleter() const override { return device_ == c10::DeviceType::CPU ? &release_cpu : nullptr; }
  void copy_data(void* to, const void* from, std::size_t size) const override { inner_->copy_data(to, from, size); }
  int64_t live() const { return live_; }
  int64_t peak() const { return peak_; }
  void restart_peak() { peak_ = live_.load(); }

 private:
  struct Meta {
    CountingAllocator* owner;
    size_t size;
  };
  void count(int64_t size) {
    const int64_t live = live_ += size;
    if (live > peak_) peak_ = live;
  }
  static void release_meta(void* context) {
    auto* meta = static_cast<Meta*>(context);
    meta->owner->count(-static_cast<int64_t>(meta->size));
    delete meta;
  }
  /// What was there before this object was is released as it always was.
  static void release_cpu(void* data) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = sizes_.find(data);
      if (found != sizes_.end()) cpu_->count(-found->second), sizes_.erase(found);
    }
    cpu_->inner_->raw_deallocate(data);
  }
  c10::DeviceType device_;
  c10::Allocator* inner_;
  std::atomic<int64_t> live_{0}, peak_{0};
  inline static std::mutex mutex_;
  inline static std::unordered_map<void*, int64_t> sizes_;
  inline static CountingAllocator* cpu_ = nullptr;
};

}  // namespace hanok
