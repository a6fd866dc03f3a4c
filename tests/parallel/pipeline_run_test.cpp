// Schedules carried out by ranks as threads, on pieces that note what happens to them.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "base/error.h"
#include "tests/parallel/pipeline_chain.h"
#include "tests/support/errors.h"

namespace hanok {
namespace {

void expect_reference(const PipelineShape& shape, int micro_batches, const std::vector<bool>& trains) {
  run_on_threads(shape.ranks, [&](World& world) {
    const auto pp = open_pipeline(world);
    expect_pipeline(shape, micro_batches, trains, world, *pp);
  });
}

TEST(PipelineRun, GradientsAreThoseOfOneRank) {
  for (const PipelineShape& shape : pipeline_shapes())
    for (const int m : {0, 1, 2, 5, 8}) expect_reference(shape, m, std::vector<bool>(shape.pieces(), true));
}

TEST(PipelineRun, WhatForwardsSavedIsHeldForNoMoreMicroBatchesThanTheSchedulePromises) {
  for (const PipelineShape& shape : pipeline_shapes()) {
    for (const int m : {2, 8}) {
      run_on_threads(shape.ranks, [&](World& world) {
        const auto pp = open_pipeline(world);
        Chain chain(shape, world.rank(), std::vector<bool>(shape.pieces(), true));
        run_pipeline(shape, m, chain, *pp);
        // This chain does not split its weight gradients: what it saved goes with the input gradients already.
        const int promised = peak_live_chunks(shape, world.rank(), m);
        if (shape.splits_weight_gradients()) {
          EXPECT_LE(chain.most_live, promised) << name(shape.schedule) << " p " << shape.ranks << " m " << m;
        } else {
          EXPECT_EQ(chain.most_live, promised) << name(shape.schedule) << " p " << shape.ranks << " m " << m;
        }
      });
    }
  }
}

TEST(PipelineRun, FrozenPiecesPassGradientsOnAndThoseBeforeAllOthersHaveNone) {
  for (const PipelineShape& shape : pipeline_shapes()) {
    for (int only = 0; only < shape.pieces(); ++only) {
      std::vector<bool> trains(shape.pieces(), false);
      trains[only] = true;
      expect_reference(shape, 3, trains);
    }
  }
}

/// Beside the stream goes which pieces a micro-batch has passed; back goes what the last one knows.
class NotingChain : public Chain {
 public:
  using Chain::Chain;
  Tensor note_like(bool, int) const override { return at::empty({2}, at::kDouble); }
  void read_note(bool is_gradient, int micro_batch, const Tensor& note) override {
    EXPECT_EQ(note[1].item<int64_t>(), micro_batch);
    (is_gradient ? known : passed)[micro_batch] = note[0].item<int64_t>();
  }
  Tensor write_note(bool is_gradient, int micro_batch) const override {
    const int64_t value = (is_gradient ? known : passed).at(micro_batch);
    return at::tensor({static_cast<double>(value), static_cast<double>(micro_batch)}, at::kDouble);
  }
  Output forward(int piece, int micro_batch, const std::vector<Tensor>& stream) override {
    const int64_t before = piece == 0 ? 0 : passed.at(micro_batch), here = int64_t{1} << piece;
    EXPECT_EQ(before, here - 1) << "piece " << piece;
    passed[micro_batch] = before + here;
    Output out = Chain::forward(piece, micro_batch, stream);
    if (out.loss.defined()) known[micro_batch] = passed[micro_batch];
    return out;
  }
  std::map<int, int64_t> passed, known;
};

TEST(PipelineRun, NotesPassEveryPieceAndComeBack) {
  for (const PipelineShape& shape : pipeline_shapes()) {
    for (const int m : {1, 8}) {
      run_on_threads(shape.ranks, [&](World& world) {
        const auto pp = open_pipeline(world);
        NotingChain chain(shape, world.rank(), std::vector<bool>(shape.pieces(), true));
        run_pipeline(shape, m, chain, *pp);
        for (int i = 0; i < m; ++i) EXPECT_EQ(chain.known.at(i), (int64_t{1} << shape.pieces()) - 1);
      });
    }
  }
}

TEST(PipelineRun, ForwardAloneGivesTheLastRankTheResult) {
  for (const PipelineShape& shape : pipeline_shapes()) {
    run_on_threads(shape.ranks, [&](World& world) {
      const auto pp = open_pipeline(world);
      Chain chain(shape, world.rank(), std::vector<bool>(shape.pieces(), true));
      for (int i = 0; i < 4; ++i) {
        Tensor want = Chain::data_of(i);
        for (int piece = 0; piece < shape.pieces(); ++piece) want = at::mm(want, Chain::initial(piece)).tanh();
        const std::vector<Tensor> got = run_forward(shape, i, chain, *pp);
        const bool is_last = place_of(shape, shape.pieces() - 1).rank == world.rank();
        ASSERT_EQ(got.size(), is_last ? 1u : 0u);
        if (is_last) {
          EXPECT_TRUE(at::allclose(got[0], want, 1e-12, 1e-12));
        }
      }
    });
  }
}

TEST(PipelineRun, AStreamOtherThanAnnouncedIsAnErrorOfItsOwn) {
  const PipelineShape shape{Schedule::k1F1B, 2, 1};
  EXPECT_ERROR(error_of([&] {
                 run_on_threads(2, [&](World& world) {
                   const auto pp = world.open("pp", {0, 1});
                   Chain chain(shape, world.rank(), {true, true});
                   chain.wrong_rows = 1;
                   run_pipeline(shape, 2, chain, *pp);
                 });
               }),
               ErrorKind::kShape,
               "pipeline: got another stream into piece 1");
}

}  // namespace
}  // namespace hanok
