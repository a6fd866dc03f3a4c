// Passes of a pipeline as they were timed.
#include "parallel/pass_times.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "parallel/groups.h"
#include "tests/parallel/pipeline_chain.h"

namespace hanok {
namespace {

using Kind = Action::Kind;

void pass(PassTimes& times, const Action& action, int piece, int milliseconds) {
  times.begin(action, piece);
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  times.end();
}

TEST(PassTimes, CostsAreMediansOfTheirKind) {
  PassTimes times(at::kCPU);
  for (const int i : {0, 1, 2}) {
    pass(times, {Kind::kForward, i, 1}, 3, i == 0 ? 80 : 2);  // the first waits for weights
    pass(times, {Kind::kBackwardInput, i, 1}, 3, 20);
    pass(times, {Kind::kBackwardWeight, i, 1}, 3, 40);
  }
  pass(times, {Kind::kBackward, 4, 0}, 1, 5);
  const std::vector<PassCosts> costs = times.costs(4);
  ASSERT_EQ(costs.size(), 4);
  EXPECT_EQ(costs[0].all(), 0);
  EXPECT_EQ(costs[1].forward, 0);
  EXPECT_GE(costs[1].backward_input, 0.005);
  EXPECT_EQ(costs[1].backward_weight, 0);
  EXPECT_GE(costs[3].forward, 0.002);
  EXPECT_LT(costs[3].forward, 0.080);
  EXPECT_GE(costs[3].backward_input, 0.020);
  EXPECT_GE(costs[3].backward_weight, 0.040);
  EXPECT_EQ(times.micro_batches(), 5);
}

// What a pass waits for is not its own time: between the passes of a rank the others work.
TEST(PassTimes, APipelineNotesEveryPassInItsOrder) {
  for (const PipelineShape& shape : pipeline_shapes()) {
    run_on_threads(shape.ranks, [&](World& world) {
      const auto pp = open_pipeline(world);
      Chain chain(shape, world.rank(), std::vector<bool>(shape.pieces(), true));
      PassTimes times(at::kCPU);
      constexpr int kMicroBatches = 5;
      run_pipeline(shape, kMicroBatches, chain, *pp, &times);
      const Moment end = Moment::now(at::kCPU);
      const std::vector<Action> actions = pipeline_actions(shape, world.rank(), kMicroBatches);
      const std::vector<PassTimes::Span> spans = times.spans(times.start());
      ASSERT_EQ(spans.size(), actions.size());
      double before = 0;
      for (size_t i = 0; i < spans.size(); ++i) {
        EXPECT_EQ(spans[i].action, actions[i]) << i;
        EXPECT_EQ(spans[i].piece, piece_of(shape, {world.rank(), actions[i].chunk})) << i;
        EXPECT_GE(spans[i].begin_s, before) << i;
        EXPECT_GE(spans[i].end_s, spans[i].begin_s) << i;
        before = spans[i].end_s;
      }
      EXPECT_LE(before, end.seconds_since(times.start()));
      EXPECT_EQ(times.micro_batches(), kMicroBatches);
    });
  }
}

}  // namespace
}  // namespace hanok
