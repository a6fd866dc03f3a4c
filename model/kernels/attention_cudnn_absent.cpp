// A build without cuDNN's headers: libtorch's kernels do the work.
#include "base/error.h"
#include "model/kernels/attention_cudnn.h"

namespace hanok {

struct RaggedOffsets {};

namespace attention_cudnn {

std::shared_ptr<RaggedOffsets> make_ragged_offsets() {
  return nullptr;
}

bool runs(const Tensor&, const Segments&, const AttentionSizes&) {
  return false;
}

std::pair<Tensor, Tensor> forward(const Tensor&, const Segments&, const AttentionSizes&) {
  HANOK_FAIL(kDevice) << "attention: got a call of cuDNN, expected none; this program was built without its headers";
}

Tensor backward(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Segments&, const AttentionSizes&) {
  HANOK_FAIL(kDevice) << "attention: got a call of cuDNN, expected none; this program was built without its headers";
}

}  // namespace attention_cudnn
}  // namespace hanok
