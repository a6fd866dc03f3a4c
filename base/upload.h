#pragma once

#include "base/tensor.h"

namespace hanok {

/// A host tensor on `device`, without the host waiting for the device: copied from pinned memory, which goes back when
/// the copy is done. The tensor itself where it lies there already.
Tensor upload(const Tensor& host, at::Device device);
/// The host tensor as such a copy wants it: in pinned memory.
Tensor upload_ready(const Tensor& host);

}  // namespace hanok
