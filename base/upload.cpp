#include "base/upload.h"

namespace hanok {

Tensor upload(const Tensor& host, at::Device device) {
  if (!host.is_cpu() || device.is_cpu() || device.is_meta()) return host.to(device);
  if (host.numel() == 0) return at::empty(host.sizes(), host.options().device(device));
  return upload_ready(host).to(device, /*non_blocking=*/true);
}

// From other memory the driver would copy while the host waits, large tensors even for all earlier work.
Tensor upload_ready(const Tensor& host) {
  return host.numel() == 0 || host.is_pinned() ? host : host.contiguous().pin_memory();
}

}  // namespace hanok
