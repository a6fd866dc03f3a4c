// Pieces of a pipeline that note what happens to them, and what they must give.
#pragma once

#include <gtest/gtest.h>

#include "parallel/groups.h"
#include "parallel/pipeline_run.h"

namespace hanok {

/// Every piece multiplies rows by a matrix of its own; micro-batches differ in length; the last piece squares.
class Chain : public PieceWork {
 public:
  Chain(const PipelineShape& shape, int rank, std::vector<bool> trains, at::Device device = at::kCPU)
      : shape_(shape), trains_(std::move(trains)), device_(device) {
    for (int piece = 0; piece < shape.pieces(); ++piece) {
      Tensor weight = initial(piece).to(device);
      weights_.push_back(weight.set_requires_grad(trains_[piece] && place_of(shape, piece).rank == rank));
    }
  }
  static constexpr int64_t kWidth = 4;
  static Tensor initial(int piece) {
    return (at::arange(kWidth * kWidth, at::kDouble).view({kWidth, kWidth}) * 0.37 + piece).sin();
  }
  static int64_t rows_of(int micro_batch) { return 1 + (micro_batch * 5) % 7; }
  static Tensor data_of(int micro_batch) {
    return (at::arange(rows_of(micro_batch) * kWidth, at::kDouble).view({-1, kWidth}) + micro_batch).cos();
  }

  std::vector<Tensor> stream_into(int piece, int micro_batch) const override {
    if (piece == 0) return {};
    return {at::empty({rows_of(micro_batch) + wrong_rows, kWidth}, at::device(device_).dtype(at::kDouble))};
  }
  Output forward(int piece, int micro_batch, const std::vector<Tensor>& stream) override {
    const Tensor x = piece == 0 ? data_of(micro_batch).to(device_) : stream.front();
    const Tensor y = (at::mm(x, weights_[piece]) * held().to(device_)).tanh();
    if (piece + 1 < shape_.pieces()) return {.stream = {y}};
    const Tensor loss = y.square().sum();
    total += loss.item<double>();
    return {.stream = {y}, .loss = loss};
  }
  bool trains(int piece) const override { return trains_[piece]; }
  void defer_weights(bool) override {}
  std::function<void()> take_deferred() override {
    return [this] { ++deferred_runs; };
  }

  /// A one that autograd keeps as long as it keeps what a forward has saved.
  Tensor held() {
    most_live = std::max(most_live, ++*live_);
    auto* one = new double(1);
    return at::from_blob(
        one,
        {1},
        [one, live = live_](void*) {
          delete one;
          --*live;
        },
        at::kDouble);
  }

  double total = 0;
  int deferred_runs = 0, most_live = 0;
  int64_t wrong_rows = 0;
  const Tensor& weight(int piece) const { return weights_[piece]; }

 private:
  PipelineShape shape_;
  std::shared_ptr<int> live_ = std::make_shared<int>(0);
  std::vector<bool> trains_;
  at::Device device_;
  std::vector<Tensor> weights_;
};

inline std::shared_ptr<Comm> open_pipeline(World& world) {
  std::vector<int> all(world.size());
  for (int rank = 0; rank < world.size(); ++rank) all[rank] = rank;
  return world.open("pp", all);
}

/// Of 1 to 4 ranks.
inline std::vector<PipelineShape> pipeline_shapes() {
  std::vector<PipelineShape> out;
  for (const int p : {1, 2, 3, 4}) {
    out.push_back({Schedule::k1F1B, p, 1});
    out.push_back({.schedule = Schedule::k1F1B, .ranks = p, .room = p / 2});
    out.push_back({Schedule::kInterleaved, p, 3});
    out.push_back({Schedule::kZeroBubbleH1, p, 1});
    out.push_back({Schedule::kZeroBubbleV, p, 2});
  }
  return out;
}

/// Gradients of all pieces and the loss, computed in one go.
inline std::vector<Tensor> pipeline_reference(int pieces,
                                              int micro_batches,
                                              const std::vector<bool>& trains,
                                              double& total) {
  std::vector<Tensor> weights;
  for (int piece = 0; piece < pieces; ++piece)
    weights.push_back(Chain::initial(piece).set_requires_grad(trains[piece]));
  total = 0;
  for (int i = 0; i < micro_batches; ++i) {
    Tensor x = Chain::data_of(i);
    for (const Tensor& weight : weights) x = at::mm(x, weight).tanh();
    const Tensor loss = x.square().sum();
    total += loss.item<double>();
    loss.backward();
  }
  std::vector<Tensor> out;
  for (const Tensor& weight : weights) out.push_back(weight.grad());
  return out;
}

/// Runs the chain on this rank and compares it with the reference.
inline void expect_pipeline(const PipelineShape& shape,
                            int micro_batches,
                            const std::vector<bool>& trains,
                            World& world,
                            Comm& pp,
                            at::Device device = at::kCPU) {
  double total = 0;
  const std::vector<Tensor> want = pipeline_reference(shape.pieces(), micro_batches, trains, total);
  Chain chain(shape, world.rank(), trains, device);
  run_pipeline(shape, micro_batches, chain, pp);
  for (int piece = 0; piece < shape.pieces(); ++piece) {
    if (place_of(shape, piece).rank != world.rank() || !trains[piece]) continue;
    if (micro_batches == 0) {
      EXPECT_FALSE(chain.weight(piece).grad().defined());
    } else {
      EXPECT_TRUE(at::allclose(chain.weight(piece).grad().cpu(), want[piece], 1e-12, 1e-12))
          << name(shape.schedule) << " p " << shape.ranks << " m " << micro_batches << " piece " << piece;
    }
  }
  if (place_of(shape, shape.pieces() - 1).rank == world.rank()) {
    EXPECT_NEAR(chain.total, total, 1e-9);
  }
  if (shape.splits_weight_gradients() && trains[0]) {
    EXPECT_EQ(chain.deferred_runs, micro_batches * shape.chunks);
  }
}

}  // namespace hanok
