#include "tests/parallel/comm_suite.h"

#include <ATen/Dispatch.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/error.h"
#include "parallel/init.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"

namespace hanok {

std::shared_ptr<Comm> open_all(World& world, std::string_view kind) {
  std::vector<int> ranks(world.size());
  std::iota(ranks.begin(), ranks.end(), 0);
  return world.open(kind, ranks);
}

Tensor sample(at::ScalarType dtype, const std::vector<int64_t>& shape, uint64_t seed, int rank) {
  Tensor wide = at::empty(shape, at::kDouble);
  double* const data = wide.data_ptr<double>();
  const uint64_t key = key_of(seed, concat("rank", rank));
  for (int64_t i = 0; i < wide.numel(); ++i) {
    const uint64_t bits = random_bits(key, i);
    const double unit = static_cast<double>(bits >> 11) * 0x1p-53 - 0.5;
    if (at::isFloatingType(dtype)) {
      data[i] = std::ldexp(unit, static_cast<int>(bits % 9) - 4);
    } else {
      data[i] = dtype == at::kBool ? static_cast<double>(bits % 2) : static_cast<double>(bits % 30);
    }
  }
  return wide.to(dtype);
}

namespace {

constexpr at::ScalarType kAllTypes[] = {
    at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kInt, at::kLong, at::kByte, at::kBool};

std::vector<std::vector<int64_t>> shapes(int size) {
  // Empty, one value, fewer and more than the group and no multiple of it, a matrix, and more than any short cut for
  // small tensors.
  return {{0}, {1}, {size - 1}, {2 * size + 1}, {3, 5}, {20011}};
}

/// The sum in rank order by plain loops: the meaning of "in rank order" for the other implementations.
template <class T, class Accumulator>
void reduce_into(Tensor& result, const std::vector<Tensor>& parts, Reduce op) {
  for (int64_t i = 0; i < result.numel(); ++i) {
    Accumulator sum = static_cast<Accumulator>(parts[0].data_ptr<T>()[i]);
    for (size_t rank = 1; rank < parts.size(); ++rank) {
      const Accumulator next = static_cast<Accumulator>(parts[rank].data_ptr<T>()[i]);
      sum = op == Reduce::kSum   ? static_cast<Accumulator>(sum + next)
            : op == Reduce::kMax ? std::max(sum, next)
                                 : std::min(sum, next);
    }
    result.data_ptr<T>()[i] = static_cast<T>(sum);
  }
}

Tensor reference(const std::vector<Tensor>& parts, Reduce op) {
  Tensor result = at::empty_like(parts[0]);
  switch (result.scalar_type()) {
    case at::kFloat: reduce_into<float, float>(result, parts, op); break;
    case at::kDouble: reduce_into<double, double>(result, parts, op); break;
    case at::kBFloat16: reduce_into<at::BFloat16, float>(result, parts, op); break;
    case at::kHalf: reduce_into<at::Half, float>(result, parts, op); break;
    case at::kInt: reduce_into<int32_t, int32_t>(result, parts, op); break;
    case at::kLong: reduce_into<int64_t, int64_t>(result, parts, op); break;
    case at::kByte: reduce_into<uint8_t, uint8_t>(result, parts, op); break;
    default: reduce_into<bool, bool>(result, parts, op); break;
  }
  return result;
}

std::vector<Tensor> samples(const Site& site, at::ScalarType dtype, const std::vector<int64_t>& shape, uint64_t seed) {
  std::vector<Tensor> all;
  for (int rank = 0; rank < site.world.size(); ++rank) all.push_back(sample(dtype, shape, seed, rank));
  return all;
}

void expect_reduced(
    const Site& site, const Tensor& got, const Tensor& want, const std::vector<Tensor>& parts, Reduce op) {
  const std::string where = concat(at::toString(want.scalar_type()),
                                   " ",
                                   want.sizes().vec(),
                                   " rank ",
                                   site.world.rank(),
                                   " of ",
                                   site.world.size());
  ASSERT_EQ(got.sizes(), want.sizes()) << where;
  if (site.ordered_sums || op != Reduce::kSum || !at::isFloatingType(want.scalar_type())) {
    EXPECT_TRUE(at::equal(got.cpu(), want)) << where;
  } else if (want.numel() > 0) {
    Tensor magnitude = at::zeros_like(want, at::kDouble);
    for (const Tensor& part : parts) magnitude += part.to(at::kDouble).abs();
    // Any order, each partial sum rounded to the dtype: at most `size` roundings of at most the sum of magnitudes.
    const Tensor bound = magnitude * (site.world.size() * epsilon_of(want.scalar_type()));
    const Tensor error = (got.cpu().to(at::kDouble) - want.to(at::kDouble)).abs();
    EXPECT_TRUE(error.le(bound).all().item<bool>()) << where;
  }
}

void all_reduce_case(const Site& site, Reduce op) {
  const auto comm = open_all(site.world);
  for (const at::ScalarType dtype : kAllTypes) {
    for (const auto& shape : shapes(site.world.size())) {
      const std::vector<Tensor> parts = samples(site, dtype, shape, 1);
      Tensor x = parts[comm->rank()].to(site.device, dtype, false, true);
      comm->all_reduce(x, op);
      expect_reduced(site, x, reference(parts, op), parts, op);
    }
  }
}

void all_reduce_sums(const Site& site) {
  all_reduce_case(site, Reduce::kSum);
}
void all_reduce_takes_the_largest(const Site& site) {
  all_reduce_case(site, Reduce::kMax);
}
void all_reduce_takes_the_smallest(const Site& site) {
  all_reduce_case(site, Reduce::kMin);
}

void all_reduce_of_a_scalar(const Site& site) {
  const auto comm = open_all(site.world);
  Tensor x = at::full({}, comm->rank() + 1.0, at::TensorOptions().dtype(at::kDouble).device(site.device));
  comm->all_reduce(x, Reduce::kSum);
  EXPECT_EQ(x.dim(), 0);
  EXPECT_EQ(x.item<double>(), comm->size() * (comm->size() + 1) / 2.0);
}

void all_reduce_repeats_bitwise(const Site& site) {
  const auto comm = open_all(site.world);
  Tensor first;
  for (int time = 0; time < 5; ++time) {
    Tensor x = sample(at::kFloat, {20011}, 2, comm->rank()).to(site.device);
    comm->all_reduce(x, Reduce::kSum);
    if (time == 0) first = x;
    EXPECT_TRUE(at::equal(x, first));
  }
}

void all_gather_concatenates(const Site& site) {
  const auto comm = open_all(site.world);
  for (const at::ScalarType dtype : kAllTypes) {
    for (const auto& shape : shapes(comm->size())) {
      const std::vector<Tensor> parts = samples(site, dtype, shape, 3);
      std::vector<int64_t> out_shape = shape;
      out_shape[0] *= comm->size();
      Tensor out = at::empty(out_shape, parts[0].options().device(site.device));
      comm->all_gather(out, parts[comm->rank()].to(site.device));
      EXPECT_TRUE(at::equal(out.cpu(), at::cat(parts)));
      // The shard may be this rank's block of the output.
      Tensor in_place = at::zeros(out_shape, parts[0].options().device(site.device));
      Tensor own = in_place.narrow(0, comm->rank() * shape[0], shape[0]);
      own.copy_(parts[comm->rank()]);
      comm->all_gather(in_place, own);
      EXPECT_TRUE(at::equal(in_place.cpu(), at::cat(parts)));
    }
  }
}

void reduce_scatter_sums_blocks(const Site& site) {
  const auto comm = open_all(site.world);
  for (const at::ScalarType dtype : kAllTypes) {
    for (const auto& shape : shapes(comm->size())) {
      std::vector<int64_t> in_shape = shape;
      in_shape[0] *= comm->size();
      const std::vector<Tensor> parts = samples(site, dtype, in_shape, 4);
      std::vector<Tensor> blocks;
      for (const Tensor& part : parts) blocks.push_back(part.narrow(0, comm->rank() * shape[0], shape[0]).contiguous());
      const Tensor want = reference(blocks, Reduce::kSum);
      Tensor in = parts[comm->rank()].to(site.device, dtype, false, true);
      Tensor out = at::empty(shape, in.options());
      comm->reduce_scatter(out, in);
      expect_reduced(site, out, want, blocks, Reduce::kSum);
      EXPECT_TRUE(at::equal(in.cpu(), parts[comm->rank()]));
      // The shard may be this rank's block of the input.
      Tensor own = in.narrow(0, comm->rank() * shape[0], shape[0]);
      comm->reduce_scatter(own, in);
      expect_reduced(site, own, want, blocks, Reduce::kSum);
    }
  }
}

void all_to_all_moves_rows(const Site& site) {
  const auto comm = open_all(site.world);
  const int size = comm->size();
  const auto rows = [](int from, int to) { return int64_t{(from * 3 + to * 5) % 4}; };  // zero for some pairs
  for (const at::ScalarType dtype : kAllTypes) {
    std::vector<std::vector<Tensor>> blocks(size);  // [from][to]
    Splits splits;
    for (int from = 0; from < size; ++from) {
      for (int to = 0; to < size; ++to) blocks[from].push_back(sample(dtype, {rows(from, to), 3}, 5 + to, from));
    }
    std::vector<Tensor> received;
    for (int other = 0; other < size; ++other) {
      splits.send.push_back(rows(comm->rank(), other));
      splits.receive.push_back(rows(other, comm->rank()));
      received.push_back(blocks[other][comm->rank()]);
    }
    const Tensor in = at::cat(blocks[comm->rank()]).to(site.device), want = at::cat(received);
    Tensor out = at::empty_like(want, want.options().device(site.device));
    comm->all_to_all(out, in, splits);
    EXPECT_TRUE(at::equal(out.cpu(), want));
  }
}

void broadcast_from_every_rank(const Site& site) {
  const auto comm = open_all(site.world);
  for (const at::ScalarType dtype : kAllTypes) {
    for (int root = 0; root < comm->size(); ++root) {
      for (const auto& shape : shapes(comm->size())) {
        Tensor x = sample(dtype, shape, 6, comm->rank()).to(site.device);
        comm->broadcast(x, root);
        EXPECT_TRUE(at::equal(x.cpu(), sample(dtype, shape, 6, root)));
      }
    }
  }
}

void messages_go_round_a_ring(const Site& site) {
  const auto comm = open_all(site.world);
  if (comm->size() == 1) return;
  const int next = (comm->rank() + 1) % comm->size(), before = (comm->rank() + comm->size() - 1) % comm->size();
  for (const at::ScalarType dtype : kAllTypes) {
    for (const auto& shape : shapes(comm->size())) {
      const Tensor own = sample(dtype, shape, 7, comm->rank()).to(site.device);
      Tensor x = at::empty_like(own);
      if (comm->rank() == 0) comm->send(own, next);
      comm->recv(x, before);
      if (comm->rank() != 0) comm->send(own, next);
      EXPECT_TRUE(at::equal(x.cpu(), sample(dtype, shape, 7, before)));
    }
  }
}

/// Everybody offers to everybody before anybody takes; collectives and messages that meet go on in between.
void offers_wait_until_they_are_taken(const Site& site) {
  const auto comm = open_all(site.world);
  const std::vector<std::vector<int64_t>> sizes = {{3}, {0, 4}, {32, 1024}, {1}};
  const auto value = [&](int from, int to, size_t i) {
    return sample(at::kFloat, sizes[i], 100 * static_cast<uint64_t>(to) + i, from);
  };
  for (int round = 0; round < 2; ++round) {
    for (int to = 0; to < comm->size(); ++to)
      for (size_t i = 0; i < sizes.size() && to != comm->rank(); ++i)
        comm->offer(value(comm->rank(), to, i).to(site.device), to);
    Tensor one = at::ones({}, at::TensorOptions().dtype(at::kLong).device(site.device));
    comm->all_reduce(one, Reduce::kSum);
    EXPECT_EQ(one.item<int64_t>(), comm->size());
    for (int from = 0; from < comm->size(); ++from) {
      for (size_t i = 0; i < sizes.size() && from != comm->rank(); ++i) {
        Tensor x = at::empty(sizes[i], at::TensorOptions().dtype(at::kFloat).device(site.device));
        comm->take(x, from);
        EXPECT_TRUE(at::equal(x.cpu(), value(from, comm->rank(), i))) << from << " " << i;
      }
    }
  }
}

void barriers_and_operations_mix(const Site& site) {
  const auto comm = open_all(site.world);
  for (int i = 0; i < 20; ++i) {
    comm->barrier();
    Tensor x = at::full({3}, i, at::TensorOptions().dtype(at::kLong).device(site.device));
    comm->all_reduce(x, Reduce::kSum);
    EXPECT_EQ(x[0].item<int64_t>(), i * comm->size());
  }
}

void groups_of_some_ranks_work_side_by_side(const Site& site) {
  std::vector<std::vector<int>> parts(3);  // unequal, interleaved
  for (int rank = 0; rank < site.world.size(); ++rank) parts[rank % 5 == 0 ? 0 : 1 + rank % 2].push_back(rank);
  std::shared_ptr<Comm> mine;
  int64_t want = 0;
  for (const auto& ranks : parts) {
    if (ranks.empty()) continue;
    const auto comm = site.world.open("part", ranks);
    const auto here = std::find(ranks.begin(), ranks.end(), site.world.rank());
    ASSERT_EQ(comm != nullptr, here != ranks.end());
    if (!comm) continue;
    mine = comm;
    EXPECT_EQ(comm->rank(), here - ranks.begin());
    EXPECT_EQ(comm->size(), static_cast<int>(ranks.size()));
    EXPECT_EQ(comm->name().substr(0, 5), "part[");
    want = std::accumulate(ranks.begin(), ranks.end(), int64_t{0});
  }
  for (int time = 0; time < 3; ++time) {
    Tensor x = at::full({4}, site.world.rank(), at::TensorOptions().dtype(at::kLong).device(site.device));
    mine->all_reduce(x, Reduce::kSum);
    EXPECT_EQ(x[3].item<int64_t>(), want);
  }
}

void every_group_of_the_mesh_works(const Site& site) {
  const int size = site.world.size();
  const int tp = size % 2 == 0 ? 2 : size % 3 == 0 ? 3 : 1;
  const Groups groups = make_groups(site.world, Mesh({.dp = size / tp, .tp = tp}), true);
  EXPECT_EQ(groups.rank, site.world.rank());
  for (const auto& comm : {groups.tp,
                           groups.cp,
                           groups.dp,
                           groups.pp,
                           groups.ep,
                           groups.etp,
                           groups.grad,
                           groups.expert_grad,
                           groups.loss,
                           groups.stage,
                           groups.world}) {
    ASSERT_NE(comm, nullptr);
    Tensor x = at::ones({2}, at::TensorOptions().device(site.device));
    comm->all_reduce(x, Reduce::kSum);
    EXPECT_EQ(x[1].item<float>(), comm->size()) << comm->name();
  }
  Tensor host = at::ones({1}, at::kLong);
  groups.control->all_reduce(host, Reduce::kSum);
  EXPECT_EQ(host.item<int64_t>(), size);
}

void expect_shape_error(const std::function<void()>& call) {
  EXPECT_ERROR(error_of(call), ErrorKind::kShape, "suite[");
}

void wrong_arguments_are_refused_before_anything_is_sent(const Site& site) {
  const auto comm = open_all(site.world);
  const int size = comm->size();
  Tensor x = at::zeros({size, 4}, at::TensorOptions().device(site.device)), strided = x.t(),
         odd = at::zeros({size * 4 + 1}, x.options());
  Tensor doubles = at::zeros({size, 4}, x.options().dtype(at::kDouble)), row = at::zeros({4}, x.options()), none;
  if (size > 1) expect_shape_error([&] { comm->all_reduce(strided, Reduce::kSum); });
  expect_shape_error([&] { comm->all_reduce(none, Reduce::kSum); });
  expect_shape_error([&] { comm->all_gather(odd, row); });
  expect_shape_error([&] { comm->all_gather(doubles, row); });
  expect_shape_error([&] { comm->reduce_scatter(row, odd); });
  expect_shape_error([&] { comm->broadcast(x, size); });
  expect_shape_error([&] { comm->send(x, comm->rank()); });
  expect_shape_error([&] { comm->recv(x, -1); });
  expect_shape_error([&] { comm->offer(x, comm->rank()); });
  expect_shape_error([&] { comm->take(x, comm->size()); });
  Splits splits{std::vector<int64_t>(size, 1), std::vector<int64_t>(size, 1)};
  expect_shape_error([&] { comm->all_to_all(row, x, splits); });
  splits.send[0] = 2;
  expect_shape_error([&] { comm->all_to_all(x, x, splits); });
  splits.send.pop_back();
  expect_shape_error([&] { comm->all_to_all(x, x, splits); });
  comm->barrier();  // the group still works
}

}  // namespace

std::vector<CommCase> comm_cases() {
  return {{"AllReduceSumsInRankOrder", all_reduce_sums},
          {"AllReduceTakesTheLargest", all_reduce_takes_the_largest},
          {"AllReduceTakesTheSmallest", all_reduce_takes_the_smallest},
          {"AllReduceOfAScalarStaysAScalar", all_reduce_of_a_scalar},
          {"AllReduceRepeatsBitwise", all_reduce_repeats_bitwise},
          {"AllGatherConcatenates", all_gather_concatenates},
          {"ReduceScatterSumsBlocks", reduce_scatter_sums_blocks},
          {"AllToAllMovesRows", all_to_all_moves_rows},
          {"BroadcastFromEveryRank", broadcast_from_every_rank},
          {"MessagesGoRoundARing", messages_go_round_a_ring},
          {"OffersWaitUntilTheyAreTaken", offers_wait_until_they_are_taken},
          {"BarriersAndOperationsMix", barriers_and_operations_mix},
          {"GroupsOfSomeRanksWorkSideBySide", groups_of_some_ranks_work_side_by_side},
          {"EveryGroupOfTheMeshWorks", every_group_of_the_mesh_works},
          {"WrongArgumentsAreRefusedBeforeAnythingIsSent", wrong_arguments_are_refused_before_anything_is_sent}};
}

}  // namespace hanok
