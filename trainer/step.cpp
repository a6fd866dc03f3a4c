#include "trainer/step.h"

#include <map>
#include <optional>

#include "parallel/pipeline_run.h"
#include "trainer/clip.h"

namespace hanok {
namespace {

/// Of a step over all ranks, on the device.
struct StepTotals {
  Tensor weight;        // sum of the label weights, f64 scalar
  Tensor has_pictures;  // bool scalar
};

/// Known before the first forward, so that every micro-batch of every rank divides by the same number and gradients
/// only need to be summed.
StepTotals global_totals(const Vlm& model, const std::vector<Batch>& batches) {
  double weight = 0, pictures = 0;
  if (model.groups().cp->rank() == 0) {  // the others hold rows of the same micro-batches
    for (const Batch& batch : batches) {
      weight += batch.weight_sum;
      pictures += static_cast<double>(batch.grid_I3.size(0));
    }
  }
  Tensor totals = at::empty({2}, at::device(model.device()).dtype(at::kDouble));
  totals[0].fill_(weight);
  totals[1].fill_(pictures);
  model.groups().loss->all_reduce(totals, Reduce::kSum);
  return {.weight = totals[0], .has_pictures = totals[1].gt(0)};
}

/// Real tokens of the step over all ranks, likewise; counted on the host, where they are needed.
double global_tokens(const Vlm& model, const std::vector<Batch>& batches) {
  double local = 0;
  for (const Batch& batch : batches) local += static_cast<double>(batch.num_tokens);
  const Groups& groups = model.groups();
  const bool speaks = groups.at.cp == 0 && groups.at.tp == 0 && groups.at.pp == 0;
  Tensor tokens = at::full({}, speaks ? local : 0, at::kDouble);
  groups.control->all_reduce(tokens, Reduce::kSum);
  return tokens.item<double>();
}

bool has_experts(const Vlm& model) {
  return model.config().decoder.num_expert_layers() > 0;
}

/// The micro-batches of a step on the pieces of this rank.
class StepWork : public PieceWork {
 public:
  StepWork(const Learner& t, std::vector<const Batch*> batches, const Tensor& weight, double tokens_of_step)
      : t_(t),
        batches_(std::move(batches)),
        inputs_(batches_.size()),
        weight_(weight),
        loss_(at::zeros_like(weight)),
        tokens_of_step_(tokens_of_step) {
    trains_.resize(t.model.pieces().size());
    for (const Param& param : t.model.whole())
      if (param.trainable) trains_[t.model.piece_of_weight(param.spec.name)] = true;
    own_params_.resize(t.model.pieces().size());
    for (size_t i = 0; i < t.model.params().size(); ++i)
      own_params_[t.model.piece_of_weight(t.model.params()[i].spec.name)].push_back(static_cast<int>(i));
  }

  std::vector<Tensor> stream_into(int piece, int micro_batch) const override {
    return t_.model.stream_into(piece, input(micro_batch));
  }
  Output forward(int piece, int micro_batch, const std::vector<Tensor>& stream) override {
    std::vector<Tensor> out = t_.model.run_piece(piece, input(micro_batch), stream);
    if (!t_.model.pieces()[piece].is_last) return {.stream = std::move(out)};
    const Batch own = own_rows(*batches_[micro_batch], input(micro_batch).cut, t_.model.groups());
    const Tensor part = t_.objective.loss(t_.model, {out.front()}, own, weight_);
    loss_ += part.detach();
    return {.loss = part};
  }
  /// Assignments and shares of the layers so far; and back, what the balancing loss adds to the gradients of shares.
  Tensor note_like(bool is_gradient, int micro_batch) const override {
    const std::shared_ptr<Routing>& routing = input(micro_batch).routing;
    if (!routing) return {};
    const auto wide = t_.model.dtype() == at::kDouble ? at::kDouble : at::kFloat;
    const auto options = at::device(t_.model.device());
    return is_gradient ? at::empty({routing->num_rows, routing->experts}, options.dtype(wide))
                       : at::empty({2, routing->num_rows, routing->experts}, options.dtype(at::kDouble));
  }
  void read_note(bool is_gradient, int micro_batch, const Tensor& note) override {
    Routing& routing = *input(micro_batch).routing;
    (is_gradient ? routing.gradient_RE : routing.carried_2RE) = note;
  }
  Tensor write_note(bool is_gradient, int micro_batch) const override {
    const std::shared_ptr<Routing>& routing = input(micro_batch).routing;
    if (!routing) return {};
    return is_gradient ? routing->gradient_RE : routing->carried_2RE;
  }
  bool trains(int piece) const override { return trains_[piece]; }
  void defer_weights(bool on) override { t_.model.defer_weight_gradients(on); }
  std::function<void()> take_deferred() override { return t_.model.take_weight_gradients(); }
  void last_gradients_begin(int piece, bool only_weights) override {
    t_.grads.expect_last(own_params_[piece], only_weights);
  }
  void last_gradients_end(int piece) override { t_.grads.expect_no_more(own_params_[piece]); }
  /// Pictures of a whole step would not fit on a device.
  void release(int micro_batch) override {
    if (inputs_[micro_batch]) inputs_[micro_batch] = ModelInput{.routing = inputs_[micro_batch]->routing};
  }
  int num_micro_batches() const { return static_cast<int>(batches_.size()); }
  /// Of the micro-batches so far, on the rank that holds the last piece.
  const Tensor& loss() const { return loss_; }
  /// Where the tokens of all micro-batches went. Collective over the stage and pp.
  void share_routing(StepResult& result) const;

 private:
  const ModelInput& input(int micro_batch) const {
    bring(micro_batch);
    if (const auto on_its_way = on_their_way_.extract(micro_batch)) {  // used for the first time
      on_its_way.mapped().wait();
      if (micro_batch + 1 < num_micro_batches()) bring(micro_batch + 1);
    }
    return *inputs_[micro_batch];
  }
  /// One micro-batch ahead of its use, while the device works on the one before.
  void bring(int micro_batch) const {
    std::optional<ModelInput>& input = inputs_[micro_batch];
    if (input) return;
    const Batch& batch = *batches_[micro_batch];
    if (t_.copies) {
      input = model_input(batch, t_.model, [&](const Tensor& host) {
        return micro_batch == 0 ? t_.copies->at_once(host) : t_.copies->after_work(host);
      });
      on_their_way_[micro_batch] = t_.copies->mark();
    } else {
      input = model_input(batch, t_.model);
    }
    if (has_experts(t_.model)) input->routing = routing_of(batch, input->cut, t_.model, tokens_of_step_);
  }

  const Learner& t_;
  std::vector<const Batch*> batches_;
  mutable std::vector<std::optional<ModelInput>> inputs_;  // made when first asked for
  mutable std::map<int, SideStream::Mark> on_their_way_;
  Tensor weight_, loss_;
  std::vector<bool> trains_;                  // by piece
  std::vector<std::vector<int>> own_params_;  // of this rank, by piece
  double tokens_of_step_;
};

void StepWork::share_routing(StepResult& result) const {
  const DecoderConfig& decoder = t_.model.config().decoder;
  const Groups& groups = t_.model.groups();
  Tensor aux = at::zeros_like(loss_);
  Tensor assigned_LE = at::zeros({decoder.layers, decoder.experts}, aux.options().dtype(at::kLong));
  for (const std::optional<ModelInput>& input : inputs_) {
    if (!input || !input->routing->assigned_LRE.defined()) continue;
    assigned_LE += input->routing->assigned_LRE.sum(1);
    if (input->routing->aux.defined()) aux += input->routing->aux;  // on the rank with the last piece
  }
  for (Comm* group : {groups.stage.get(), groups.pp.get()}) {
    group->all_reduce(assigned_LE, Reduce::kSum);
    group->all_reduce(aux, Reduce::kSum);
  }
  result.aux_loss = aux;
  result.assigned_LE = assigned_LE;
}

}  // namespace

StepResult run_step(Learner& t, const std::vector<Batch>& batches, double lr, PassTimes* times) {
  const Groups& groups = t.model.groups();
  const auto [weight, has_pictures] = global_totals(t.model, batches);
  const bool experts = has_experts(t.model);
  // Ranks that meet in a forward see the same batches; those of ep meet with others, in every one of them, and tokens
  // without a label have their share in the balancing loss.
  std::vector<const Batch*> taken;
  for (const Batch& batch : batches)
    if (batch.num_labels > 0 || experts) taken.push_back(&batch);
  t.grads.start();
  StepWork work(t, std::move(taken), weight, experts ? global_tokens(t.model, batches) : 0);
  run_pipeline(t.model.pipeline(), work.num_micro_batches(), work, *groups.pp, times);
  t.grads.finish();
  Tensor loss = work.loss();
  groups.loss->all_reduce(loss, Reduce::kSum);
  groups.pp->broadcast(loss, t.model.last_rank());

  const Clip clip = clip_by_norm(t.grads, t.stage.optimizer.clip_norm);
  const Tensor applied = loss.isfinite().logical_and(clip.norm.isfinite()).logical_and(weight.gt(0));
  t.optimizer.step(clip.scale, at::stack({applied, applied.logical_and(has_pictures)}), lr);
  StepResult result{.loss = loss, .grad_norm = clip.norm, .applied = applied, .has_pictures = has_pictures};
  if (experts) work.share_routing(result);
  return result;
}

}  // namespace hanok
