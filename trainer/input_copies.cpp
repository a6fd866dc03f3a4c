#include "trainer/input_copies.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "base/upload.h"

namespace hanok {

Tensor InputCopies::after_work(const Tensor& host) {
  if (!is_apart() || !host.is_cpu()) return upload(host, device_);
  const Tensor there = at::empty(host.sizes(), host.options().device(device_).pinned_memory(false));
  side_.run([&] { there.copy_(upload_ready(host), /*non_blocking=*/true); });
  return there;
}

Tensor InputCopies::at_once(const Tensor& host) {
  if (!is_apart() || !host.is_cpu()) return upload(host, device_);
  const c10::Stream user = c10::impl::VirtualGuardImpl(device_.type()).getStream(device_);
  Tensor there;
  side_.run_ahead([&] { there = upload(host, device_); });
  there.record_stream(user);
  return there;
}

}  // namespace hanok
