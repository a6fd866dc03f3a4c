// Every cut of the model against the same model on one rank, in f64: values, loss and the gradient of every weight.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>

#include "base/error.h"
#include "parallel/redistribute.h"
#include "tests/model/gradients.h"
#include "tests/model/tiny.h"
#include "tests/support/close.h"

namespace hanok {
namespace {

// f64 sums of at most a few thousand terms, in another order: far below this, while a missing or doubled sum is far
// above.
constexpr double kBound = 1e-10;

void expect_near(const Tensor& got, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(got.sizes(), expected.sizes()) << what;
  const double error = (got - expected).abs().max().item<double>(), scale = expected.abs().max().item<double>();
  EXPECT_LE(error, kBound * (scale + 1e-6)) << what << ": max |reference| " << scale;
}

struct Layout {
  int tp;
  bool sequence;
  Recompute recompute = {};
};

struct Reference {
  TinyRow row;
  Tensor y, loss;
  std::vector<Tensor> values, grads;
};

Reference run_alone(const ModelConfig& config, bool pictures) {
  Vlm model(config, make_single_groups(), at::kDouble, at::kCPU);
  randomise(model, 11);
  Reference reference{.row = tiny_row(config, 48, pictures, at::kDouble)};
  const ModelOutput output = model.forward(reference.row.input);
  reference.y = output.y_TD.detach();
  const Tensor loss = weighted_loss(model, output, reference.row);
  loss.backward();
  reference.loss = loss.detach();
  for (Param& param : model.params()) {
    reference.values.push_back(param.value.detach());
    reference.grads.push_back(param.value.grad());
  }
  return reference;
}

/// The piece of a global tensor that this rank holds.
Tensor local_piece(const Tensor& global, const ParamSpec& spec, const Groups& groups) {
  Tensor local = at::empty(local_shape(spec, groups), global.options());
  const Tensor flat = global.contiguous().view(-1), target = local.view(-1);
  for (const FlatRun& run : flat_runs(spec, groups.tp->rank(), groups.tp->size()))
    target.narrow(0, run.local_begin, run.size).copy_(flat.narrow(0, run.global_begin, run.size));
  return local;
}

/// What GradSync makes of the gradients of one weight, over whole tensors: the global gradient, equal on every rank.
Tensor global_gradient(const Param& param, const Groups& groups) {
  const ParamSpec& spec = param.spec;
  const Tensor own = param.value.grad().defined() ? param.value.grad() : at::zeros_like(param.value);
  if (spec.cut_dim < 0) {
    Tensor sum = own.clone();
    if (spec.sum_grad_over_tp) groups.tp->all_reduce(sum, Reduce::kSum);
    return sum;
  }
  Tensor sum = at::zeros(spec.shape, own.options());  // pieces side by side; replicas add up
  for (const FlatRun& run : flat_runs(spec, groups.tp->rank(), groups.tp->size()))
    sum.view(-1)
        .narrow(0, run.global_begin, run.size)
        .copy_(own.contiguous().view(-1).narrow(0, run.local_begin, run.size));
  groups.tp->all_reduce(sum, Reduce::kSum);
  return sum;
}

void expect_same_on(const ModelConfig& config, const Reference& reference, const Layout& layout) {
  const std::string where =
      concat("tp ", layout.tp, layout.sequence ? " sequence" : "", layout.recompute.every ? " recompute" : "");
  run_on_threads(layout.tp, [&](World& world) {
    at::set_num_threads(1);
    const Groups groups = make_groups(world, Mesh({.tp = layout.tp}), layout.sequence);
    Vlm model(config, groups, at::kDouble, at::kCPU);
    model.set_execution({.recompute = layout.recompute});
    {
      at::NoGradGuard no_grad;
      for (size_t i = 0; i < model.params().size(); ++i)
        model.params()[i].value.copy_(local_piece(reference.values[i], model.params()[i].spec, groups));
    }
    const ModelOutput output = model.forward(reference.row.input);
    const RowRange own = sequence_range(reference.y.size(0), groups);
    expect_near(output.y_TD, reference.y.narrow(0, own.begin, own.size), where + " y");
    const Tensor loss = weighted_loss(model, output, reference.row);
    expect_near(loss, reference.loss, where + " loss");
    loss.backward();
    for (size_t i = 0; i < model.params().size(); ++i) {
      const Param& param = model.params()[i];
      const Tensor expected = reference.grads[i].defined() ? reference.grads[i] : at::zeros_like(reference.values[i]);
      expect_near(global_gradient(param, groups), expected, where + " gradient of " + param.spec.name);
    }
  });
}

void expect_same_everywhere(const ModelConfig& config, bool pictures) {
  const int threads = at::get_num_threads();
  const Reference reference = run_alone(config, pictures);
  for (const int tp : {2, 4})
    for (const bool sequence : {false, true}) expect_same_on(config, reference, {tp, sequence});
  expect_same_on(config, reference, {2, true, {.every = 1}});
  expect_same_on(config, reference, {2, true, {.every = 1, .keep = Keep::kAttention}});
  for (const bool sequence : {false, true}) {
    expect_same_on(config, reference, {2, sequence, {.every = 1, .keep = Keep::kResults}});
    expect_same_on(config, reference, {4, sequence, {.every = 2, .keep = Keep::kResults, .offload = true}});
  }
  at::set_num_threads(threads);
}

TEST(TensorParallel, WithKeyValueHeadsFewerThanRanksAndAnUnevenVocabulary) {
  expect_same_everywhere(tiny_config(), true);
}

TEST(TensorParallel, WithAnUntiedHeadAndOneKeyValueHeadForAll) {
  ModelConfig config = tiny_config();
  config.decoder.tied = false;
  config.decoder.kv_heads = 1;
  config.decoder.vocab = 64;
  expect_same_everywhere(config, true);
}

TEST(TensorParallel, WithSeveralTapsAndAsManyKeyValueHeadsAsQueries) {
  ModelConfig config = tiny_config();
  config.decoder.kv_heads = 4;
  config.taps = {0, 1};
  expect_same_everywhere(config, true);
}

TEST(TensorParallel, WithTextAlone) {
  expect_same_everywhere(tiny_config(), false);
}

}  // namespace
}  // namespace hanok
