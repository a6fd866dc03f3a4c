#include "base/upload.h"

namespace hanok {

Tensor upload(const Tensor& host, at::Device device) {
  if (!host.is_cpu() || device.is_cpu() || device.is_meta()) return host.to(device);
  if (host.numel() == 0) return at::empty(host.sizes(), host.options().device(device));
  // From other memory the driver would copy while the host waits, large tensors even for all earlier work.
  const Tensor pinned = host.is_pinned() ? host : host.contiguous().pin_memory();
  return pinned.to(device, /*non_blocking=*/true);
}

}  // namespace hanok
