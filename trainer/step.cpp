#include "trainer/step.h"

#include <optional>

#include "model/layers/linear.h"
#include "parallel/pipeline_run.h"
#include "trainer/clip.h"

namespace hanok {
namespace {

/// Sum of the label weights of the whole step, f64: known before the first forward, so that every micro-batch of every
/// rank divides by the same number and gradients only need to be summed.
Tensor global_weight(const Vlm& model, const std::vector<Batch>& batches) {
  double local = 0;
  if (model.groups().cp->rank() == 0)  // the others hold rows of the same micro-batches
    for (const Batch& batch : batches) local += batch.weight_sum;
  Tensor weight = at::full({}, local, at::device(device_of(model)).dtype(at::kDouble));
  model.groups().loss->all_reduce(weight, Reduce::kSum);
  return weight;
}

/// The micro-batches of a step on the pieces of this rank.
class StepWork : public PieceWork {
 public:
  StepWork(const Learner& t, std::vector<const Batch*> batches, const Tensor& weight)
      : t_(t), batches_(std::move(batches)), inputs_(batches_.size()), weight_(weight), loss_(at::zeros_like(weight)) {
    trains_.resize(t.model.pieces().size());
    for (const Param& param : t.model.whole())
      if (param.trainable) trains_[t.model.piece_of_weight(param.spec.name)] = true;
  }

  std::vector<Tensor> stream_into(int piece, int micro_batch) const override {
    return t_.model.stream_into(piece, input(micro_batch));
  }
  Output forward(int piece, int micro_batch, const std::vector<Tensor>& stream) override {
    std::vector<Tensor> out = t_.model.run_piece(piece, input(micro_batch), stream);
    if (!t_.model.pieces()[piece].is_last) return {.stream = std::move(out)};
    const Batch own = own_rows(*batches_[micro_batch], input(micro_batch).cut, t_.model.groups());
    const Tensor part = t_.objective.loss(t_.model, {out.front()}, own) / weight_;
    loss_ += part.detach();
    return {.loss = part};
  }
  bool trains(int piece) const override { return trains_[piece]; }
  void defer_weights(bool on) override { t_.model.deferred().defer(on); }
  std::function<void()> take_deferred() override {
    return [products = t_.model.deferred().take()] { add_products(products); };
  }
  int num_micro_batches() const { return static_cast<int>(batches_.size()); }
  /// Of the micro-batches so far, on the rank that holds the last piece.
  const Tensor& loss() const { return loss_; }

 private:
  const ModelInput& input(int micro_batch) const {
    if (!inputs_[micro_batch]) inputs_[micro_batch] = model_input(*batches_[micro_batch], t_.model);
    return *inputs_[micro_batch];
  }

  const Learner& t_;
  std::vector<const Batch*> batches_;
  mutable std::vector<std::optional<ModelInput>> inputs_;  // made when first asked for
  Tensor weight_, loss_;
  std::vector<bool> trains_;  // by piece
};

}  // namespace

StepResult run_step(Learner& t, const std::vector<Batch>& batches, double lr) {
  const Groups& groups = t.model.groups();
  const Tensor weight = global_weight(t.model, batches);
  std::vector<const Batch*> labelled;  // ranks that meet in a forward see the same batches
  for (const Batch& batch : batches)
    if (batch.num_labels > 0) labelled.push_back(&batch);
  t.grads.start();
  StepWork work(t, std::move(labelled), weight);
  run_pipeline(t.model.pipeline(), work.num_micro_batches(), work, *groups.pp);
  t.grads.finish();
  Tensor loss = work.loss();
  groups.loss->all_reduce(loss, Reduce::kSum);
  groups.pp->broadcast(loss, t.model.last_rank());

  const Clip clip = clip_by_norm(t.grads, t.stage.optimizer.clip_norm);
  const Tensor applied = loss.isfinite().logical_and(clip.norm.isfinite()).logical_and(weight.gt(0));
  t.optimizer.step(clip.scale, applied, lr);
  return {loss, clip.norm, applied};
}

at::Device device_of(const Vlm& model) {
  return model.device();
}

}  // namespace hanok
