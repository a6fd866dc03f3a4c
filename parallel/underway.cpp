#include "parallel/underway.h"

#include <numeric>

#include "base/error.h"

namespace hanok {
namespace {

Tensor rows_like(const Tensor& x, int64_t rows) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape[0] = rows;
  return at::empty(shape, x.options());
}

}  // namespace

template <class Operation>
Underway::Underway(const Tensor& in, const Tensor& out, SideStream& side, const Operation& operation)
    : in_(in), out_(out) {
  const at::NoGradGuard no_grad;
  side.run([] {});
  const SideStream::Mark begun = side.mark();
  side.run_ahead(operation);
  done_ = side.mark();
  // A product that comes first takes every multiprocessor until its end, and the operation would wait for it.
  begun.wait();
}

Underway Underway::gather(const Tensor& x, Comm& group, SideStream& side) {
  const Tensor in = x.contiguous();
  Tensor out = rows_like(in, in.size(0) * group.size());
  return {in, out, side, [&] { group.all_gather(out, in); }};
}

Underway Underway::reduce_scatter(const Tensor& x, Comm& group, SideStream& side) {
  HANOK_REQUIRE(x.size(0) % group.size() == 0, kShape)
      << "rows: got " << x.size(0) << ", expected a multiple of " << group.size() << "; group " << group.name()
      << "; pad the rows";
  return reduce_scatter(x, rows_like(x, x.size(0) / group.size()), group, side);
}

Underway Underway::reduce_scatter(const Tensor& x, const Tensor& own, Comm& group, SideStream& side) {
  const Tensor in = x.contiguous();
  Tensor out = own;
  return {in, out, side, [&] { group.reduce_scatter(out, in); }};
}

Underway Underway::exchange(const Tensor& x, const Splits& splits, Comm& group, SideStream& side) {
  const Tensor in = x.contiguous();
  Tensor out = rows_like(in, std::accumulate(splits.receive.begin(), splits.receive.end(), int64_t{0}));
  return {in, out, side, [&] { group.all_to_all(out, in, splits); }};
}

Tensor Underway::arrived() {
  done_.wait();
  in_.reset();
  return out_;
}

}  // namespace hanok
