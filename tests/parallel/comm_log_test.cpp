// On its own, because logging is started once per process.
#include <gtest/gtest.h>

#include "base/log.h"
#include "tests/parallel/comm_suite.h"

namespace hanok {
namespace {

TEST(CommLog, Level2NamesGroupOperationNumberAndElementsOfEveryCollective) {
  start_logging("comm_log_test", 0, 1, "", 2);
  testing::internal::CaptureStderr();
  run_on_threads(2, [](World& world) {
    const auto comm = open_all(world, "tp");
    Tensor x = at::ones({4, 3});
    comm->all_reduce(x, Reduce::kSum);
    comm->barrier();
    world.rank() == 0 ? comm->send(x, 1) : comm->recv(x, 0);
  });
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("tp[0 1] all_reduce #1: 12 Float"), std::string::npos) << log;
  EXPECT_NE(log.find("tp[0 1] barrier #2"), std::string::npos) << log;
  EXPECT_NE(log.find("tp[0 1] send #1: 12 Float"), std::string::npos) << log;
}

}  // namespace
}  // namespace hanok
