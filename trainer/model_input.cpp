#include "trainer/model_input.h"

#include "base/upload.h"

namespace hanok {
namespace {

/// This rank's pictures and where the vision tokens of its rows come from.
void add_pictures(ModelInput& input, const Batch& batch, const Vlm& model, const Bring& bring) {
  const ModelConfig& config = model.config();
  // A patch meets about 12 W^2 weights of a block, and 2 W values of every other patch of its frame.
  const VisionCutting options{.merge = config.connector.merge,
                              .linear_patches = 6.0 * static_cast<double>(config.tower.hidden)};
  const VisionCut cut = cut_vision(batch.grid_I3, batch.vision_index_M, input.cut, model.groups().cp->rank(), options);
  if (model.has_entry()) {
    std::vector<Tensor> pixels;
    for (const RowInterval& patches : cut.patches)
      pixels.push_back(batch.pixels_PC.narrow(0, patches.begin, patches.size()));
    if (cut.stand_in_patches > 0)
      pixels.push_back(at::zeros({cut.stand_in_patches, batch.pixels_PC.size(1)}, batch.pixels_PC.options()));
    input.pixels_PC = bring(at::cat(pixels, 0));
  }
  input.grid_I3 = cut.grid_I3;
  input.vision_index_M = bring(cut.vision_index_M);
  input.vision = {bring(cut.exchange.order_S), cut.exchange.splits};
}

}  // namespace

ModelInput model_input(const Batch& batch, const Vlm& model, const Bring& bring) {
  const Bring moved = bring ? bring : [&](const Tensor& host) { return upload(host, model.device()); };
  ModelInput input{.row_starts = batch.row_starts, .cut = cut_rows(batch.row_starts, model.groups().cp->size())};
  const Batch own = own_rows(batch, input.cut, model.groups());
  input.tokens_T = moved(own.tokens_T);
  input.position_3T = moved(own.position_3T);
  if (input.cut.is_cut() && batch.grid_I3.size(0) > 0) {
    add_pictures(input, batch, model, moved);
    return input;
  }
  if (model.has_entry()) input.pixels_PC = moved(batch.pixels_PC);
  input.grid_I3 = batch.grid_I3;
  input.vision_index_M = moved(batch.vision_index_M);
  return input;
}

std::shared_ptr<Routing> routing_of(const Batch& batch, const RowCut& cut, const Vlm& model, double tokens_of_step) {
  const DecoderConfig& decoder = model.config().decoder;
  Tensor row_T = at::full({batch.tokens_T.size(0)}, -1, at::kLong);
  int64_t rows = 1;
  for (const PlacedSample& sample : batch.samples) {
    row_T.narrow(0, sample.begin, sample.end - sample.begin).fill_(sample.row);
    rows = std::max<int64_t>(rows, sample.row + 1);
  }
  if (cut.is_cut()) row_T = row_T.index_select(0, cut.rows_of(model.groups().cp->rank()));
  return std::make_shared<Routing>(Routing{.row_T = upload(row_T, model.device()),
                                           .num_rows = rows,
                                           .tokens_of_step = tokens_of_step,
                                           .coefficient = tokens_of_step > 0 ? decoder.aux_loss : 0,
                                           .layers = decoder.layers,
                                           .expert_layers = decoder.num_expert_layers(),
                                           .experts = decoder.experts,
                                           .experts_per_token = decoder.experts_per_token});
}

Batch own_rows(const Batch& batch, const RowCut& cut, const Groups& groups) {
  if (!cut.is_cut()) return batch;
  const Tensor rows = cut.rows_of(groups.cp->rank());
  Batch own = batch;
  own.tokens_T = batch.tokens_T.index_select(0, rows);
  own.targets_T = batch.targets_T.index_select(0, rows);
  own.weight_T = batch.weight_T.index_select(0, rows);
  own.position_3T = batch.position_3T.index_select(1, rows);
  return own;
}

Tensor held_of(const Tensor& chosen_N, const RowCut& cut, const Groups& groups) {
  if (!cut.is_cut()) return chosen_N;
  const RowCut::Places places = cut.places();
  const Tensor is_held = places.rank_T.index_select(0, chosen_N).eq(groups.cp->rank());
  return places.row_T.index_select(0, chosen_N).masked_select(is_held);
}

Tensor gather_chosen(const Tensor& values, const Tensor& chosen_N, const RowCut& cut, const Groups& groups) {
  if (!cut.is_cut()) return values;
  const Tensor is_held = cut.places().rank_T.index_select(0, chosen_N).eq(groups.cp->rank());
  std::vector<int64_t> shape = values.sizes().vec();
  shape[0] = chosen_N.size(0);
  Tensor all = at::zeros(shape, values.options().requires_grad(false));
  all.index_copy_(0, is_held.nonzero().squeeze(1).to(values.device()), values.detach());
  groups.cp->all_reduce(all, Reduce::kSum);
  return all;
}

}  // namespace hanok
