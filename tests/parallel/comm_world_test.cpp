// The suite over MPI, or over NCCL on the GPUs of this host: mpirun -np N comm_world_test mpi|nccl. Every rank runs
// every test.
#include <gtest/gtest.h>
#include <mpi.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "parallel/comm_base.h"
#include "tests/parallel/comm_suite.h"
#include "tests/parallel/pipeline_chain.h"
#include "tests/support/processes.h"

namespace hanok {
namespace {

constexpr double kStallTimeout = 60;
Backend backend = Backend::kMpi;
std::unique_ptr<World> world;
at::Device device = at::kCPU;

class Processes : public testing::TestWithParam<CommCase> {};

TEST_P(Processes, Pass) {
  GetParam().run({.world = *world, .device = device, .ordered_sums = backend == Backend::kMpi});
}

std::string case_name(const testing::TestParamInfo<CommCase>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Operations, Processes, testing::ValuesIn(comm_cases()), case_name);
INSTANTIATE_TEST_SUITE_P(Pairs, Processes, testing::ValuesIn(collective_cases()), case_name);

/// Results of all_reduce and reduce_scatter for this rank, on any back-end.
std::vector<Tensor> sums(World& on) {
  const auto comm = open_all(on);
  std::vector<Tensor> results;
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kInt}) {
    for (const int64_t rows : {1, 7, 1001, 30011}) {
      const Tensor in = sample(dtype, {rows * comm->size()}, 40, comm->rank());
      Tensor all = in.clone(), shard = at::empty({rows}, in.options());
      comm->all_reduce(all, Reduce::kSum);
      comm->reduce_scatter(shard, in);
      results.push_back(all);
      results.push_back(shard);
    }
  }
  return results;
}

TEST(Mpi, SumsEqualTheThreadBackendBitwise) {
  if (backend != Backend::kMpi) return;
  const std::vector<Tensor> got = sums(*world);
  run_on_threads(world->size(), [&](World& threads) {
    const std::vector<Tensor> want = sums(threads);
    if (threads.rank() != world->rank()) return;
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(got[i], want[i])) << i;
  });
}

TEST(Mpi, TensorsLargerThanTheStagingMemoryAreReducedInSlices) {
  if (backend != Backend::kMpi) return;
  const auto comm = open_all(*world);
  const int64_t size = comm->size(), triangle = size * (size + 1) / 2, rows = (int64_t{17} << 20) / size + 3;
  const Tensor pattern = at::arange(rows * size, at::kFloat).remainder_(1000);
  Tensor x = pattern * (comm->rank() + 1), shard = at::empty({rows});
  comm->reduce_scatter(shard, x);
  EXPECT_TRUE(at::equal(shard, pattern.narrow(0, comm->rank() * rows, rows) * triangle));
  comm->all_reduce(x, Reduce::kSum);
  EXPECT_TRUE(at::equal(x, pattern * triangle));
}

TEST(Mpi, AStalledRankIsReportedAndTheGroupIsRefusedFromThenOn) {
  if (backend != Backend::kMpi || world->size() == 1) return;
  const auto impatient = make_mpi_world(Backend::kMpi, 0.5);
  const auto together = open_all(*world);
  for (const int64_t elements : {4, 10000}) {  // the short cut for small tensors, and the exchange
    const auto group = open_all(*impatient, "tp");
    together->barrier();  // on a busy machine ranks come out of the last round seconds apart
    Tensor x = at::ones({elements});
    if (group->rank() == 0) {
      std::this_thread::sleep_for(std::chrono::seconds(3));
      try {
        group->all_reduce(x, Reduce::kSum);  // the messages of the others are there, but nobody answers
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kComm);
      }
      continue;
    }
    try {
      group->all_reduce(x, Reduce::kSum);
      ADD_FAILURE() << "expected an error";
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(error.kind(), ErrorKind::kComm);
      EXPECT_EQ(text.find("all_reduce: got no answer from world ranks [0"), 0u) << text;
      EXPECT_NE(text.find(concat("operation 1, ", elements, " Float, MPI")), std::string::npos) << text;
    }
    EXPECT_THROW(group->barrier(), Error);
  }
  together->barrier();
}

TEST(Mpi, TensorsOfDifferentSizesAreNoticed) {
  if (backend != Backend::kMpi || world->size() == 1) return;
  const auto comm = open_all(*world);
  if (comm->rank() > 1) return;
  Tensor x = at::ones({comm->rank() == 0 ? 3 : 5});
  if (comm->rank() == 0) {
    comm->send(x, 1);
    return;
  }
  EXPECT_THROW(comm->recv(x, 0), Error);
}

TEST(Pipeline, GradientsAreThoseOfOneRank) {
  const auto pp = open_pipeline(*world);
  for (const PipelineShape& shape : pipeline_shapes()) {
    if (shape.ranks != world->size()) continue;
    const std::vector<bool> trains(shape.pieces(), true);
    for (const int m : {1, 2, 5, 8}) expect_pipeline(shape, m, trains, *world, *pp, device);
  }
}

TEST(Pipeline, LongMessagesOfNeighboursCross) {
  const auto pp = open_pipeline(*world);
  if (pp->size() == 1) return;
  const auto options = at::TensorOptions().device(device).dtype(at::kFloat);
  const int64_t elements = device.is_cuda() ? int64_t{1} << 24 : 1 << 18;
  // CUDA may wait for all kernels under way to load a new one: offers that wait for this rank, for ever.
  EXPECT_TRUE(at::full({4}, 1, options).eq(1).all().item<bool>());
  const int next = (pp->rank() + 1) % pp->size(), before = (pp->rank() + pp->size() - 1) % pp->size();
  for (int round = 0; round < 2; ++round) {
    // What is offered is freed at once, and what is taken comes in the order of neither neighbour's offers.
    for (int i = 0; i < 3; ++i)
      for (const int to : {next, before}) pp->offer(at::full({elements + i}, 100 * pp->rank() + i, options), to);
    for (const int from : {before, next}) {
      for (int i = 0; i < (next == before ? 6 : 3); ++i) {
        const int sent = next == before ? i / 2 : i;
        Tensor x = at::empty({elements + sent}, options);
        pp->take(x, from);
        EXPECT_TRUE(x.eq(100 * from + sent).all().item<bool>()) << from << " " << i;
      }
      if (next == before) break;
    }
  }
}

/// What the watchdog of an NCCL world says, instead of ending the process.
struct Said {
  std::mutex mutex;
  std::string text;
  std::function<void(const Error&)> listener() {
    return [this](const Error& error) {
      const std::lock_guard lock(mutex);
      text = error.what();
    };
  }
  std::string get() {
    const std::lock_guard lock(mutex);
    return text;
  }
};

constexpr double kImpatience = 3;  // seconds; more than the first use of a communicator takes

/// `stuck` is called on all ranks, on the last one too late.
void expect_stall(const std::string& operation, bool is_open, const std::function<void(Comm&, Tensor&)>& stuck) {
  Said said;
  const auto impatient = make_mpi_world(Backend::kNccl, kImpatience, said.listener());
  const auto comm = open_all(*impatient, "tp");
  Tensor x = at::ones({1000}, at::TensorOptions().device(device));
  if (is_open) comm->all_reduce(x, Reduce::kSum);
  open_all(*world)->barrier();
  const int last = comm->size() - 1;
  if (comm->rank() == last) std::this_thread::sleep_for(std::chrono::duration<double>(2.5 * kImpatience));
  stuck(*comm, x);
  x.cpu();
  const std::string text = said.get();
  if (comm->rank() == last || (operation == "recv" && comm->rank() != 0)) return;
  const int number = operation == "recv" || !is_open ? 1 : 2;
  EXPECT_EQ(text,
            concat(operation,
                   ": got no answer from world ranks [",
                   last,
                   "] in ",
                   kImpatience,
                   " s, expected them to arrive; group ",
                   comm->name(),
                   ", operation ",
                   number,
                   ", 1000 Float, NCCL; look for the operation in which those ranks are, or raise the stall timeout"));
}

TEST(Nccl, ARankThatIsLateIsReportedByThoseWhoWait) {
  if (backend != Backend::kNccl || world->size() == 1) return;
  const int last = world->size() - 1;
  const auto sum = [](Comm& comm, Tensor& x) { comm.all_reduce(x, Reduce::kSum); };
  expect_stall("all_reduce", false, sum);  // while the communicator is made
  expect_stall("all_reduce", true, sum);
  expect_stall("recv", true, [last](Comm& comm, Tensor& x) {
    if (comm.rank() == 0) comm.recv(x, last);
    if (comm.rank() == last) comm.send(x, 0);
  });
}

TEST(Nccl, LongWorkBeforeAnOperationIsNoStall) {
  if (backend != Backend::kNccl) return;
  Said said;
  const auto impatient = make_mpi_world(Backend::kNccl, kImpatience, said.listener());
  const auto comm = open_all(*impatient, "tp");
  Tensor sum = at::ones({1000}, at::TensorOptions().device(device));
  comm->barrier();
  const Tensor x = at::ones({8192, 8192}, sum.options());
  Tensor y = at::empty_like(x);
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 400; ++i) at::mm_out(y, x, x);  // in f32: seconds on any GPU
  comm->all_reduce(sum, Reduce::kSum);
  comm->barrier();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  EXPECT_GT(took.count(), 1.2 * kImpatience) << "more work is needed here";
  EXPECT_EQ(said.get(), "");
}

TEST(World, ThreadsAreNotAnMpiBackend) {
  EXPECT_THROW(make_mpi_world(Backend::kThread, 1), Error);
}

int run(const std::string& name) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  print_as_one_of_several(rank);
  backend = name == "mpi" ? Backend::kMpi : Backend::kNccl;
  if (backend == Backend::kNccl) device = own_gpu();
  world = make_mpi_world(backend, kStallTimeout, {}, name != "nccl_without_links");  // says so when there are no GPUs
  const c10::OptionalDeviceGuard guard(device);
  const int failed = RUN_ALL_TESTS();
  world.reset();
  return failed;
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  int level = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &level);
  testing::InitGoogleTest(&argc, argv);
  int failed = 1;
  try {
    failed = hanok::run(argc > 1 ? argv[1] : "mpi");
  } catch (const hanok::Error& error) {
    std::cerr << error.what() << '\n';
  }
  MPI_Finalize();
  return failed;
}
