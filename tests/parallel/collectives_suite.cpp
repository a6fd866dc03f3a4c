// Each conjugate pair is a linear map: with small integers in f64 its numeric derivative is exact, and so must backward
// be.
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "base/error.h"
#include "parallel/collectives.h"
#include "parallel/redistribute.h"
#include "tests/parallel/comm_suite.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

using Map = std::function<Tensor(const Tensor&)>;

struct Kind {
  bool same_input;   // x is the same tensor on every rank
  bool same_output;  // y is the same on every rank, and is used once by all of them together
};

Tensor small_integers(const Site& site, at::IntArrayRef shape, uint64_t seed, int rank) {
  return sample(at::kLong, shape.vec(), seed, rank).to(at::kDouble).sub_(15).to(site.device);
}

/// Loss of the whole system for this rank's input: the sum over ranks of <w, f(x)>, or that of one rank if all have the
/// same y.
double total_loss(const Tensor& x, const Tensor& w, const Map& f, const Kind& kind, Comm& comm) {
  const at::NoGradGuard no_grad;
  Tensor loss = (f(x) * w).sum();
  if (kind.same_output && comm.rank() > 0) loss.zero_();
  comm.all_reduce(loss, Reduce::kSum);
  return loss.item<double>();
}

/// Backward of f against the numeric derivative of the total loss with respect to every element of every rank's input.
void expect_gradient(const Site& site, Comm& comm, const std::vector<int64_t>& shape, const Kind& kind, const Map& f) {
  const Tensor x = small_integers(site, shape, 21, kind.same_input ? 0 : comm.rank());
  Tensor leaf = x.clone().set_requires_grad(true);
  const Tensor y = f(leaf);
  const Tensor w = small_integers(site, y.sizes(), 22, kind.same_output ? 0 : comm.rank());
  const Tensor got = torch::autograd::grad({y}, {leaf}, {w})[0];
  ASSERT_EQ(got.sizes(), x.sizes());
  Tensor want = at::zeros_like(x);
  for (int owner = 0; owner < (kind.same_input ? 1 : comm.size()); ++owner) {
    const bool mine = kind.same_input || owner == comm.rank();
    for (int64_t i = 0; i < x.numel(); ++i) {
      Tensor up = x.clone(), down = x.clone();
      if (mine) up.view(-1)[i] += 1;
      if (mine) down.view(-1)[i] -= 1;
      const double slope = (total_loss(up, w, f, kind, comm) - total_loss(down, w, f, kind, comm)) / 2;
      if (mine) want.view(-1)[i] = slope;
    }
  }
  EXPECT_TRUE(at::equal(got, want)) << "rank " << comm.rank() << "\ngot " << got << "\nwant " << want;
}

constexpr Kind kSameInput{true, false}, kSameOutput{false, true}, kOwn{false, false};

void copy_to_group_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  expect_gradient(site, *comm, {3, 2}, kSameInput, [&](const Tensor& x) { return copy_to_group(x, comm); });
}

void sum_over_group_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  expect_gradient(site, *comm, {3, 2}, kSameOutput, [&](const Tensor& x) { return sum_over_group(x, comm); });
}

void split_to_group_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  expect_gradient(
      site, *comm, {2 * comm->size(), 2}, kSameInput, [&](const Tensor& x) { return split_to_group(x, comm); });
}

void gather_and_split_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  expect_gradient(site, *comm, {2, 2}, kSameOutput, [&](const Tensor& x) { return gather_and_split(x, comm); });
}

void gather_and_reduce_scatter_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  expect_gradient(site, *comm, {2, 2}, kOwn, [&](const Tensor& x) { return gather_and_reduce_scatter(x, comm); });
}

void reduce_scatter_and_gather_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  expect_gradient(
      site, *comm, {comm->size(), 2}, kOwn, [&](const Tensor& x) { return reduce_scatter_and_gather(x, comm); });
}

void exchange_rows_gradient(const Site& site) {
  const auto comm = open_all(site.world);
  const auto rows = [](int from, int to) { return int64_t{(from + 2 * to) % 3}; };
  Splits splits;
  int64_t sent = 0;
  for (int other = 0; other < comm->size(); ++other) {
    splits.send.push_back(rows(comm->rank(), other));
    splits.receive.push_back(rows(other, comm->rank()));
    sent += splits.send.back();
  }
  if (comm->size() == 1) splits.send[0] = splits.receive[0] = sent = 2;
  // Ranks have different numbers of rows: the numeric derivative asks every rank for the same number of evaluations.
  const int64_t most = 3 * comm->size();
  expect_gradient(
      site, *comm, {most, 2}, kOwn, [&](const Tensor& x) { return exchange_rows(x.narrow(0, 0, sent), splits, comm); });
}

void forward_values(const Site& site) {
  const auto comm = open_all(site.world);
  std::vector<Tensor> all;
  for (int rank = 0; rank < comm->size(); ++rank) all.push_back(small_integers(site, {comm->size(), 2}, 23, rank));
  const Tensor mine = all[comm->rank()];
  Tensor sum = at::zeros_like(mine);
  for (const Tensor& x : all) sum += x;
  const Tensor own_row = sum.narrow(0, comm->rank(), 1);
  EXPECT_TRUE(at::equal(copy_to_group(mine, comm), mine));
  EXPECT_TRUE(at::equal(sum_over_group(mine, comm), sum));
  EXPECT_TRUE(at::equal(split_to_group(mine, comm), mine.narrow(0, comm->rank(), 1)));
  EXPECT_TRUE(at::equal(gather_and_split(mine, comm), at::cat(all)));
  EXPECT_TRUE(at::equal(gather_and_reduce_scatter(mine, comm), at::cat(all)));
  EXPECT_TRUE(at::equal(reduce_scatter_and_gather(mine, comm), own_row));
}

/// Gradients that autograd hands over are often expanded or transposed, and inputs are often views.
void strided_inputs_and_gradients(const Site& site) {
  const auto comm = open_all(site.world);
  const int64_t n = comm->size();
  const auto check = [&](const Map& f) {
    const Tensor plain = small_integers(site, {n, n}, 24, 0).set_requires_grad(true);
    f(plain.t()).sum().backward();
    const Tensor strided = plain.grad();
    const Tensor other = plain.detach().t().contiguous().set_requires_grad(true);
    const Tensor y = f(other);
    const Tensor dense = torch::autograd::grad({y}, {other}, {at::ones_like(y).contiguous()})[0];
    EXPECT_TRUE(at::equal(strided, dense.t()));
  };
  check([&](const Tensor& x) { return copy_to_group(x, comm); });
  check([&](const Tensor& x) { return sum_over_group(x, comm); });
  check([&](const Tensor& x) { return split_to_group(x, comm); });
  check([&](const Tensor& x) { return gather_and_split(x, comm); });
  check([&](const Tensor& x) { return gather_and_reduce_scatter(x, comm); });
  check([&](const Tensor& x) { return reduce_scatter_and_gather(x, comm); });
}

void empty_rows(const Site& site) {
  const auto comm = open_all(site.world);
  Tensor x = at::zeros({0, 3}, at::TensorOptions().device(site.device)).set_requires_grad(true);
  for (const auto& f : {copy_to_group,
                        sum_over_group,
                        split_to_group,
                        gather_and_split,
                        gather_and_reduce_scatter,
                        reduce_scatter_and_gather}) {
    const Tensor y = f(x, comm);
    EXPECT_EQ(y.numel(), 0);
    y.sum().backward();
    EXPECT_EQ(x.grad().numel(), 0);
  }
}

void rows_that_do_not_divide_are_refused(const Site& site) {
  const auto comm = open_all(site.world);
  if (comm->size() == 1) return;
  const Tensor x = at::zeros({comm->size() + 1, 2}, at::TensorOptions().device(site.device));
  for (const auto& f : {split_to_group, reduce_scatter_and_gather})
    EXPECT_ERROR(error_of([&] { f(x, comm); }), ErrorKind::kShape, concat("got ", comm->size() + 1));
}

/// x -> column-cut -> relu -> row-cut -> + bias, as Linear layers do it, against the same layers on one rank.
void tensor_parallel_layers_equal_one_rank(const Site& site, bool sequence_parallel) {
  const int tp = site.world.size();
  const Groups groups = make_groups(site.world, Mesh({.tp = tp}), sequence_parallel);
  const int64_t rows = 2 * tp, width = 3, hidden = 2 * tp, rank = groups.tp->rank();
  const auto leaf = [&](at::IntArrayRef shape, uint64_t seed) {
    return small_integers(site, shape, seed, 0).set_requires_grad(true);
  };
  const auto layers = [&](const Tensor& x, const Tensor& up, const Tensor& down, const Tensor& bias, const Groups& on) {
    const Tensor full = redistribute(x, Layout::kSequence, Layout::kFull, on);
    const Tensor partial = full.matmul(up.t()).relu().matmul(down.t());
    return redistribute(partial, Layout::kPartial, Layout::kSequence, on) + bias;
  };
  const Tensor x = leaf({rows, width}, 31), up = leaf({hidden, width}, 32), down = leaf({width, hidden}, 33),
               bias = leaf({width}, 34);
  const Tensor w = small_integers(site, {rows, width}, 35, 0);
  const Tensor y = layers(x, up, down, bias, make_single_groups());
  (y * w).sum().backward();

  Tensor x_cut = x.detach().clone().set_requires_grad(true), bias_cut = bias.detach().clone().set_requires_grad(true);
  Tensor up_cut = up.detach().narrow(0, rank * 2, 2).clone().set_requires_grad(true);
  Tensor down_cut = down.detach().narrow(1, rank * 2, 2).clone().set_requires_grad(true);
  const RowRange own = sequence_range(rows, groups);
  EXPECT_EQ(own.size, sequence_parallel ? 2 : rows);
  const Tensor in = redistribute(x_cut, Layout::kFull, Layout::kSequence, groups);
  const Tensor out = layers(in, up_cut, down_cut, bias_cut, groups);
  EXPECT_TRUE(at::equal(out, y.detach().narrow(0, own.begin, own.size)));
  (out * w.narrow(0, own.begin, own.size)).sum().backward();
  Tensor bias_grad = bias_cut.grad().clone();
  if (sequence_parallel && tp > 1) groups.tp->all_reduce(bias_grad, Reduce::kSum);  // what sum_grad_over_tp stands for
  EXPECT_TRUE(at::equal(x_cut.grad(), x.grad()));
  EXPECT_TRUE(at::equal(up_cut.grad(), up.grad().narrow(0, rank * 2, 2)));
  EXPECT_TRUE(at::equal(down_cut.grad(), down.grad().narrow(1, rank * 2, 2)));
  EXPECT_TRUE(at::equal(bias_grad, bias.grad()));
}

void layers_with_rows_cut(const Site& site) {
  tensor_parallel_layers_equal_one_rank(site, true);
}
void layers_with_rows_whole(const Site& site) {
  tensor_parallel_layers_equal_one_rank(site, false);
}

void layouts_that_cannot_follow_each_other_are_refused(const Site& site) {
  const Groups groups = make_groups(site.world, Mesh({.tp = site.world.size()}), true);
  const Tensor x = at::zeros({site.world.size(), 2}, at::TensorOptions().device(site.device));
  EXPECT_TRUE(redistribute(x, Layout::kHeads, Layout::kHeads, groups).is_same(x));
  if (site.world.size() == 1) {
    EXPECT_TRUE(redistribute(x, Layout::kHeads, Layout::kFull, groups).is_same(x));
    return;
  }
  EXPECT_THROW(redistribute(x, Layout::kHeads, Layout::kFull, groups), Error);
  EXPECT_THROW(redistribute(x, Layout::kSequence, Layout::kPartial, groups), Error);
  EXPECT_THROW(sequence_range(site.world.size() + 1, groups), Error);
}

}  // namespace

std::vector<CommCase> collective_cases() {
  return {{"ForwardValues", forward_values},
          {"CopyToGroupGradient", copy_to_group_gradient},
          {"SumOverGroupGradient", sum_over_group_gradient},
          {"SplitToGroupGradient", split_to_group_gradient},
          {"GatherAndSplitGradient", gather_and_split_gradient},
          {"GatherAndReduceScatterGradient", gather_and_reduce_scatter_gradient},
          {"ReduceScatterAndGatherGradient", reduce_scatter_and_gather_gradient},
          {"ExchangeRowsGradient", exchange_rows_gradient},
          {"StridedInputsAndGradients", strided_inputs_and_gradients},
          {"EmptyRows", empty_rows},
          {"RowsThatDoNotDivideAreRefused", rows_that_do_not_divide_are_refused},
          {"LayersWithRowsCutEqualOneRank", layers_with_rows_cut},
          {"LayersWithRowsWholeEqualOneRank", layers_with_rows_whole},
          {"LayoutsThatCannotFollowEachOtherAreRefused", layouts_that_cannot_follow_each_other_are_refused}};
}

}  // namespace hanok
