#include "parallel/comm_base.h"

#include <numeric>

#include "base/log.h"

namespace hanok {

std::string group_name(std::string_view kind, const std::vector<int>& ranks) {
  std::string name = concat(kind, "[");
  for (size_t i = 0; i < ranks.size(); ++i) name += concat(i == 0 ? "" : " ", ranks[i]);
  return name + "]";
}

Tensor reduce_in_order(at::TensorList parts, Reduce op) {
  const at::ScalarType dtype = parts[0].scalar_type();
  if (op != Reduce::kSum) {
    Tensor best = parts[0].clone();
    for (size_t i = 1; i < parts.size(); ++i) {
      op == Reduce::kMax ? at::maximum_out(best, best, parts[i]) : at::minimum_out(best, best, parts[i]);
    }
    return best;
  }
  const bool widen = dtype == at::kBFloat16 || dtype == at::kHalf;
  Tensor sum = widen ? parts[0].to(at::kFloat) : parts[0].clone();
  for (size_t i = 1; i < parts.size(); ++i) sum.add_(parts[i]);
  return widen ? sum.to(dtype) : sum;
}

CheckedComm::CheckedComm(std::string_view kind,
                         const std::vector<int>& ranks,
                         int rank,
                         std::string_view backend,
                         std::shared_ptr<const ProgressLine> progress)
    : name_(group_name(kind, ranks)),
      rank_(rank),
      size_(static_cast<int>(ranks.size())),
      backend_(backend),
      progress_(std::move(progress)) {}

Error comm_error(const CommCall& call,
                 std::string_view what,
                 std::string_view group,
                 std::string_view backend,
                 std::string_view advice) {
  return {ErrorKind::kComm,
          concat(call.operation,
                 ": ",
                 what,
                 "; group ",
                 group,
                 ", operation ",
                 call.sequence,
                 ", ",
                 call.elements,
                 " ",
                 at::toString(call.dtype),
                 ", ",
                 backend,
                 "; ",
                 advice)};
}

void CheckedComm::fail(const CommCall& call, const std::string& what, std::string_view advice) const {
  throw comm_error(call, what, name_, backend_, advice);
}

CommCall CheckedComm::begin(std::string_view operation, const Tensor& x, int64_t& counter, int peer) {
  const CommCall call{operation, ++counter, x.numel(), x.scalar_type(), peer};
  HANOK_VLOG(2) << name_ << " " << operation << " #" << call.sequence << ": " << call.elements << " "
                << at::toString(call.dtype);
  return call;
}

CommCall CheckedComm::begin_collective(std::string_view operation, const Tensor& x) {
  if (progress_) progress_->advance(collectives_ + 1);
  return begin(operation, x, collectives_);
}

CommCall CheckedComm::begin_message(
    std::string_view operation, const Tensor& x, int peer, std::map<int, int64_t>& counters, std::string_view instead) {
  require_usable(operation, x);
  require_peer(operation, peer);
  HANOK_REQUIRE(peer != rank_, kShape) << operation << ": got this rank, " << peer << ", expected another one; group "
                                       << name_ << "; " << instead << " the tensor instead";
  return begin(operation, x, counters[peer], peer);
}

void CheckedComm::require_usable(std::string_view operation, const Tensor& x) const {
  HANOK_REQUIRE(x.defined() && x.is_contiguous(), kShape)
      << operation << ": got " << (x.defined() ? "a strided tensor" : "no tensor")
      << ", expected a contiguous one; group " << name_ << "; call contiguous() first";
}

void CheckedComm::require_same_kind(std::string_view operation, const Tensor& a, const Tensor& b) const {
  require_usable(operation, a);
  require_usable(operation, b);
  HANOK_REQUIRE(a.scalar_type() == b.scalar_type() && a.device() == b.device(), kShape)
      << operation << ": got output " << at::toString(a.scalar_type()) << " on " << a.device().str() << ", input "
      << at::toString(b.scalar_type()) << " on " << b.device().str() << ", expected the same of both; group " << name_
      << "; allocate the output like the input";
}

void CheckedComm::require_peer(std::string_view operation, int peer) const {
  HANOK_REQUIRE(peer >= 0 && peer < size_, kShape)
      << operation << ": got rank " << peer << ", expected 0 to " << size_ - 1 << "; group " << name_
      << "; ranks are those inside the group";
}

void CheckedComm::all_reduce(Tensor& x, Reduce op) {
  at::NoGradGuard no_grad;
  require_usable("all_reduce", x);
  const CommCall call = begin_collective("all_reduce", x);
  if (size_ > 1) do_all_reduce(call, x, op);
}

void CheckedComm::all_gather(Tensor& out, const Tensor& shard) {
  at::NoGradGuard no_grad;
  require_same_kind("all_gather", out, shard);
  HANOK_REQUIRE(out.numel() == shard.numel() * size_, kShape)
      << "all_gather: got " << out.numel() << " output elements, expected " << size_ << " * " << shard.numel()
      << "; group " << name_ << "; allocate [size * n, ...]";
  const CommCall call = begin_collective("all_gather", shard);
  if (size_ > 1) {
    do_all_gather(call, out, shard);
  } else if (out.data_ptr() != shard.data_ptr()) {
    out.view(-1).copy_(shard.view(-1));
  }
}

void CheckedComm::reduce_scatter(Tensor& shard, const Tensor& in) {
  at::NoGradGuard no_grad;
  require_same_kind("reduce_scatter", shard, in);
  HANOK_REQUIRE(in.numel() == shard.numel() * size_, kShape)
      << "reduce_scatter: got " << in.numel() << " input elements, expected " << size_ << " * " << shard.numel()
      << "; group " << name_ << "; pad the input to a multiple of the group";
  const CommCall call = begin_collective("reduce_scatter", shard);
  if (size_ > 1) {
    do_reduce_scatter(call, shard, in);
  } else if (shard.data_ptr() != in.data_ptr()) {
    shard.view(-1).copy_(in.view(-1));
  }
}

void CheckedComm::all_to_all(Tensor& out, const Tensor& in, const Splits& splits) {
  at::NoGradGuard no_grad;
  require_same_kind("all_to_all", out, in);
  HANOK_REQUIRE(in.dim() >= 1 && out.dim() == in.dim() && out.sizes().slice(1) == in.sizes().slice(1), kShape)
      << "all_to_all: got output " << out.sizes().vec() << ", input " << in.sizes().vec()
      << ", expected rows of the same shape; group " << name_ << "; allocate the output with the input's row shape";
  const auto rows = [&](const std::vector<int64_t>& counts) {
    const bool valid = static_cast<int>(counts.size()) == size_ && *std::min_element(counts.begin(), counts.end()) >= 0;
    return valid ? std::accumulate(counts.begin(), counts.end(), int64_t{0}) : -1;
  };
  HANOK_REQUIRE(rows(splits.send) == in.size(0) && rows(splits.receive) == out.size(0), kShape)
      << "all_to_all: got splits send " << splits.send << ", receive " << splits.receive << ", expected " << size_
      << " counts each that add up to " << in.size(0) << " and " << out.size(0) << " rows; group " << name_
      << "; exchange the counts first";
  const CommCall call = begin_collective("all_to_all", in);
  if (size_ > 1) {
    do_all_to_all(call, out, in, splits);
  } else {
    out.copy_(in);
  }
}

void CheckedComm::broadcast(Tensor& x, int root) {
  at::NoGradGuard no_grad;
  require_usable("broadcast", x);
  require_peer("broadcast", root);
  const CommCall call = begin_collective("broadcast", x);
  if (size_ > 1) do_broadcast(call, x, root);
}

void CheckedComm::send(const Tensor& x, int to) {
  at::NoGradGuard no_grad;
  do_send(begin_message("send", x, to, sends_, "copy"), x, to);
}

void CheckedComm::recv(Tensor& x, int from) {
  at::NoGradGuard no_grad;
  do_recv(begin_message("recv", x, from, receives_, "copy"), x, from);
}

void CheckedComm::offer(const Tensor& x, int to) {
  at::NoGradGuard no_grad;
  do_offer(begin_message("offer", x, to, offers_, "hand on"), x, to);
}

void CheckedComm::take(Tensor& x, int from) {
  at::NoGradGuard no_grad;
  do_take(begin_message("take", x, from, takes_, "hand on"), x, from);
}

void CheckedComm::barrier() {
  const CommCall call{"barrier", ++collectives_};
  if (progress_) progress_->advance(call.sequence);
  HANOK_VLOG(2) << name_ << " barrier #" << call.sequence;
  if (size_ > 1) do_barrier(call);
}

namespace {
/// The checks of the base answer everything: no operation of one rank reaches a back-end.
class SoloComm final : public CheckedComm {
 public:
  SoloComm(std::string_view kind, int world_rank) : CheckedComm(kind, {world_rank}, 0, "one rank") {}

 private:
  void do_all_reduce(const CommCall&, Tensor&, Reduce) override {}
  void do_all_gather(const CommCall&, Tensor&, const Tensor&) override {}
  void do_reduce_scatter(const CommCall&, Tensor&, const Tensor&) override {}
  void do_all_to_all(const CommCall&, Tensor&, const Tensor&, const Splits&) override {}
  void do_broadcast(const CommCall&, Tensor&, int) override {}
  void do_send(const CommCall&, const Tensor&, int) override {}
  void do_recv(const CommCall&, Tensor&, int) override {}
  void do_offer(const CommCall&, const Tensor&, int) override {}
  void do_take(const CommCall&, Tensor&, int) override {}
  void do_barrier(const CommCall&) override {}
};
}  // namespace

std::shared_ptr<Comm> make_solo_comm(std::string_view kind, int world_rank) {
  return std::make_shared<SoloComm>(kind, world_rank);
}

}  // namespace hanok
