#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "tests/parallel/comm_suite.h"

namespace hanok {
namespace {

class Threads : public testing::TestWithParam<std::tuple<CommCase, int>> {};

TEST_P(Threads, Pass) {
  const auto& [comm_case, size] = GetParam();
  run_on_threads(
      size, [run = comm_case.run](World& world) { run({.world = world}); }, 60);
}

std::string case_name(const testing::TestParamInfo<std::tuple<CommCase, int>>& info) {
  return concat(std::get<0>(info.param).name, "On", std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Operations,
                         Threads,
                         testing::Combine(testing::ValuesIn(comm_cases()), testing::Range(1, 9)),
                         case_name);
INSTANTIATE_TEST_SUITE_P(Pairs,
                         Threads,
                         testing::Combine(testing::ValuesIn(collective_cases()), testing::Range(1, 9)),
                         case_name);

std::string comm_error_of(int size, const std::function<void(World&)>& body, double stall_timeout_s = 60) {
  const auto start = std::chrono::steady_clock::now();
  std::string text;
  try {
    run_on_threads(size, body, stall_timeout_s);
    ADD_FAILURE() << "expected an error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kComm) << error.what();
    text = error.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30)) << text;
  return text;
}

TEST(ThreadWorld, AStalledRankIsReportedWithGroupOperationAndSequenceNumber) {
  const std::string text = comm_error_of(
      3,
      [](World& world) {
        const auto comm = open_all(world, "tp");
        Tensor x = at::ones({4});
        comm->all_reduce(x, Reduce::kSum);
        if (world.rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(3));
        comm->all_reduce(x, Reduce::kSum);
      },
      1);
  EXPECT_EQ(text.find("all_reduce: got no answer from world ranks [1] in 1 s"), 0u) << text;
  EXPECT_NE(text.find("group tp[0 1 2], operation 2, 4 Float"), std::string::npos) << text;
}

TEST(ThreadWorld, AStalledReceiverAndAStalledSenderAreReported) {
  const auto body = [](int idle) {
    return [idle](World& world) {
      const auto comm = open_all(world);
      Tensor x = at::ones({4});
      if (world.rank() == idle) std::this_thread::sleep_for(std::chrono::seconds(2));
      world.rank() == 0 ? comm->send(x, 1) : comm->recv(x, 0);
    };
  };
  EXPECT_NE(comm_error_of(2, body(1), 0.5).find("send: got no answer from world ranks [1]"), std::string::npos);
  EXPECT_NE(comm_error_of(2, body(0), 0.5).find("recv: got no answer from world ranks [0]"), std::string::npos);
}

TEST(ThreadWorld, AFailingRankWakesTheOthersAndItsErrorIsTheOneReported) {
  std::atomic<int> woken{0};
  try {
    run_on_threads(4, [&](World& world) {
      const auto comm = open_all(world);
      if (world.rank() == 2) HANOK_FAIL(kData) << "image 17 is broken";
      try {
        comm->barrier();
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kComm);
        EXPECT_NE(std::string(error.what()).find("image 17 is broken"), std::string::npos) << error.what();
        ++woken;
        throw;
      }
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData);
  }
  EXPECT_EQ(woken, 3);
}

TEST(ThreadWorld, AnErrorOfAnotherLibraryIsRethrownToo) {
  EXPECT_THROW(run_on_threads(2,
                              [](World& world) {
                                const auto comm = open_all(world);
                                if (world.rank() == 0) at::zeros({2}).matmul(at::zeros({3}));
                                comm->barrier();
                              }),
               c10::Error);
}

TEST(ThreadWorld, ARankThatEndedIsNotWaitedFor) {
  const std::string text = comm_error_of(3, [](World& world) {
    const auto comm = open_all(world);
    if (world.rank() != 0) comm->barrier();
  });
  EXPECT_NE(text.find("got world ranks [0] that have ended"), std::string::npos) << text;
}

TEST(ThreadWorld, RanksThatCallDifferentOperationsAreToldSo) {
  const std::string text = comm_error_of(2, [](World& world) {
    const auto comm = open_all(world);
    Tensor x = at::ones({4});
    world.rank() == 0 ? comm->all_reduce(x, Reduce::kSum) : comm->broadcast(x, 0);
  });
  EXPECT_NE(text.find("expected the same operation, root, size and dtype"), std::string::npos) << text;
}

TEST(ThreadWorld, RanksThatDisagreeOnSizeOrDtypeAreToldSo) {
  comm_error_of(2, [](World& world) {
    Tensor x = at::ones({4 + world.rank()});
    open_all(world)->all_reduce(x, Reduce::kSum);
  });
  comm_error_of(2, [](World& world) {
    Tensor x = at::ones({4}, world.rank() == 0 ? at::kFloat : at::kInt);
    open_all(world)->all_reduce(x, Reduce::kSum);
  });
  comm_error_of(2, [](World& world) {
    Tensor x = at::ones({4 + world.rank()});
    const auto comm = open_all(world);
    world.rank() == 0 ? comm->send(x, 1) : comm->recv(x, 0);
  });
  comm_error_of(2, [](World& world) {
    Tensor x = at::ones({3}), y = at::empty({3});
    // Each sends one row to rank 0 and two to rank 1, but rank 0 expects two from rank 1.
    open_all(world)->all_to_all(y, x, {.send = {1, 2}, .receive = {1, 2}});
  });
}

TEST(ThreadWorld, GroupsOpenedInDifferentOrderAreRefused) {
  comm_error_of(2, [](World& world) {
    const std::vector<int> both = {0, 1};
    world.open(world.rank() == 0 ? "tp" : "dp", both);
    world.open(world.rank() == 0 ? "dp" : "tp", both)->barrier();
  });
}

TEST(ThreadWorld, BackwardOfEveryRankMeetsInsideCollectives) {
  run_on_threads(4, [](World& world) {
    const auto comm = open_all(world);
    Tensor x = at::full({2, 2}, world.rank() + 1.0).set_requires_grad(true);
    for (int i = 0; i < 20; ++i) {
      x.mutable_grad().reset();
      Tensor y = x * 2;
      y.register_hook([&](const Tensor& grad) {
        Tensor sum = grad.clone();
        comm->all_reduce(sum, Reduce::kSum);
        return sum;
      });
      (y * (world.rank() + 1)).sum().backward();
      EXPECT_EQ(x.grad()[0][0].item<float>(), 2 * (1 + 2 + 3 + 4));
    }
  });
}

TEST(ThreadWorld, RanksShareTheIntraOpThreadsAndGiveThemBack) {
  const int before = at::get_num_threads();
  at::set_num_threads(5);
  std::atomic<int> sum{0};
  run_on_threads(2, [&](World&) { sum += at::get_num_threads(); });
  EXPECT_EQ(sum, 4);
  EXPECT_EQ(at::get_num_threads(), 5);
  at::set_num_threads(before);
}

TEST(ThreadWorld, AMeshOfAnotherSizeIsRefused) {
  try {
    run_on_threads(2, [](World& world) { make_groups(world, Mesh({.tp = 4}), false); });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kConfig);
    EXPECT_NE(std::string(error.what()).find("mpirun -np 4"), std::string::npos);
  }
}

TEST(SingleGroups, EveryGroupHasOneRankAndEveryOperationReturnsAtOnce) {
  const Groups groups = make_single_groups();
  for (const auto& comm : {groups.tp, groups.grad, groups.world, groups.control}) {
    EXPECT_EQ(comm->size(), 1);
    Tensor x = at::ones({3}), y = at::zeros({3});
    comm->all_reduce(x, Reduce::kSum);
    comm->all_gather(y, x);
    EXPECT_TRUE(at::equal(x, y));
    comm->barrier();
  }
}

}  // namespace
}  // namespace hanok
