#include "model/layers/rope.h"

#include "base/error.h"
#include "base/upload.h"

namespace hanok {
namespace {

/// 1 / theta^(2j / dim), j < dim / 2, in f32 by the same operations as the reference library.
Tensor inverse_frequencies(int64_t dim, double theta, at::Device device) {
  const Tensor exponent = at::arange(0, dim, 2, at::kFloat) / static_cast<double>(dim);
  return upload(1.0 / at::pow(theta, exponent), device);
}

}  // namespace

RopeTable mrope_table(const Tensor& position_3T,
                      int64_t head_dim,
                      double theta,
                      const std::vector<int64_t>& section,
                      at::ScalarType dtype) {
  HANOK_REQUIRE(position_3T.dim() == 2 && position_3T.size(0) == 3 && section.size() == 3, kShape)
      << "positions: got " << position_3T.sizes() << " with " << section.size() << " sections, expected [3, T] and 3";
  std::vector<int64_t> axis(head_dim / 2, 0);
  for (const int64_t which : {1, 2})
    for (int64_t j = which; j < std::min<int64_t>(3 * section[which], head_dim / 2); j += 3) axis[j] = which;
  const Tensor axis_R = upload(at::tensor(axis, at::kLong), position_3T.device());
  const Tensor position_TR = position_3T.to(at::kFloat).index_select(0, axis_R).t();
  const Tensor angle_TR = (position_TR * inverse_frequencies(head_dim, theta, position_3T.device())).contiguous();
  return {angle_TR.cos().to(dtype), angle_TR.sin().to(dtype)};
}

RopeTable axial_table(const Tensor& position_P2, int64_t head_dim, double theta, at::ScalarType dtype) {
  const Tensor frequency = inverse_frequencies(head_dim / 2, theta, position_P2.device());
  const Tensor angle_PR =
      (position_P2.to(at::kFloat).unsqueeze(2) * frequency).view({position_P2.size(0), head_dim / 2});
  const auto table = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return {angle_PR.cos().to(table), angle_PR.sin().to(table)};
}

}  // namespace hanok
