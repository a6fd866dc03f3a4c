#include "model/vlm.h"

#include <optional>

#include "base/error.h"
#include "model/layers/linear.h"
#include "model/layers/token_rows.h"
#include "model/plans.h"
#include "model/registry.h"
#include "parallel/collectives.h"
#include "parallel/init.h"
#include "parallel/redistribute.h"

namespace hanok {

struct Vlm::State {
  ModelConfig config;
  Groups groups;
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  PipelineShape pipeline;
  std::vector<PieceRange> pieces;  // of the whole model
  WeightGradients deferred;
  ParamTable params;
  std::vector<Tensor> entry_weights;  // of tower, connector and embedding
  std::optional<ParamTable> whole;    // where this rank holds a part
  std::unique_ptr<Tower> tower;
  std::unique_ptr<Connector> connector;
  std::unique_ptr<Decoder> decoder;
  Execution execution;

  BuildState build_state(const Plan& plan, const Groups& on, ParamTable& table) {
    return {.plan = &plan,
            .groups = &on,
            .params = &table,
            .dtype = dtype,
            .device = device,
            .init_std = config.init_std,
            .embed_init_std = config.embed_init_std > 0 ? config.embed_init_std : config.init_std,
            .residual_init_std = config.residual_init_std > 0 ? config.residual_init_std : config.init_std};
  }
  void build_parts(BuildState& build) {
    const BuildContext root(build);
    if (build.pieces.front().is_first) {
      tower = make_tower(config, root.in("tower"));
      connector = make_connector(config, root.in("connector"));
    }
    decoder = make_decoder(config, root.in("decoder"));
  }
  void declare_whole(const Plan& plan);
  void build_own(const Plan& plan);
};

/// Every weight of the model, on one rank and without memory; the plan is checked against all of them.
void Vlm::State::declare_whole(const Plan& plan) {
  State all;
  all.config = config;
  all.dtype = dtype;
  all.device = at::kMeta;
  all.groups = make_single_groups();
  BuildState build = all.build_state(plan, all.groups, all.params);
  build.pieces = cut_pieces(config, 1, {});
  all.build_parts(build);
  plan.check_all_used(build.modules);
  whole = std::move(all.params);
}

void Vlm::State::build_own(const Plan& plan) {
  BuildState build = build_state(plan, groups, params);
  const int own = groups.at.pp, last = place_of(pipeline, pipeline.pieces() - 1).rank;
  for (int chunk = 0; chunk < pipeline.chunks; ++chunk)
    build.pieces.push_back(pieces.at(piece_of(pipeline, {own, chunk})));
  if (last != 0) build.twin = own == 0 ? last : own == last ? 0 : -1;
  if (pipeline.splits_weight_gradients() || deferred.overlaps_exchanges()) build.deferred = &deferred;
  build_parts(build);
  for (const Param& param : params)
    if (!param.spec.name.starts_with("decoder.") || param.spec.name.starts_with("decoder.embed."))
      entry_weights.push_back(param.value);
  if (!whole) plan.check_all_used(build.modules);
}

Vlm::Vlm(const ModelConfig& config,
         const Groups& groups,
         at::ScalarType dtype,
         at::Device device,
         const ParallelConfig& layout)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.config = config;
  s.groups = groups;
  s.dtype = dtype;
  s.device = device;
  ParallelConfig on_pipeline = layout;
  on_pipeline.pp = groups.pp->size();
  s.pipeline = pipeline_shape(on_pipeline);
  s.pieces = cut_pieces(config, s.pipeline.pieces(), layout.pp_layers);
  const Plan plan = plan_of(config);
  s.deferred.overlap_exchanges(layout.overlap && groups.ep->size() > 1);
  if (s.pipeline.ranks > 1) s.declare_whole(plan);
  s.build_own(plan);
}

Vlm::~Vlm() = default;

const ModelConfig& Vlm::config() const {
  return state_->config;
}
ParamTable& Vlm::params() {
  return state_->params;
}
const ParamTable& Vlm::params() const {
  return state_->params;
}
ParamTable& Vlm::whole() {
  return state_->whole ? *state_->whole : state_->params;
}
const ParamTable& Vlm::whole() const {
  return state_->whole ? *state_->whole : state_->params;
}
const PipelineShape& Vlm::pipeline() const {
  return state_->pipeline;
}
void Vlm::set_measured_costs(std::vector<PassCosts> costs) {
  state_->pipeline.measured = std::move(costs);
}
const std::vector<PieceRange>& Vlm::pieces() const {
  return state_->pieces;
}
void Vlm::defer_weight_gradients(bool on) {
  state_->deferred.defer(on);
}
std::function<void()> Vlm::take_weight_gradients() {
  return [left = state_->deferred.take()] {
    const at::NoGradGuard no_grad;
    for (const WeightGradients::Work& work : left) work();
  };
}
int Vlm::piece_of_weight(const std::string& name) const {
  const std::vector<PieceRange>& pieces = state_->pieces;
  if (const std::optional<int64_t> sublayer = sublayer_of(name)) return piece_with(*sublayer, pieces);
  const bool at_end = name.starts_with("decoder.norm.") || name.starts_with("decoder.head.");
  return at_end ? pieces.back().piece : 0;
}
bool Vlm::has_entry() const {
  return state_->groups.at.pp == place_of(state_->pipeline, 0).rank;
}
int Vlm::last_rank() const {
  return place_of(state_->pipeline, state_->pipeline.pieces() - 1).rank;
}
bool Vlm::has_head() const {
  return state_->groups.at.pp == last_rank();
}
at::ScalarType Vlm::dtype() const {
  return state_->dtype;
}
at::Device Vlm::device() const {
  return state_->device;
}
void Vlm::set_execution(const Execution& execution) {
  state_->execution = execution;
}
VocabShard Vlm::head() const {
  return state_->decoder->head();
}
const Groups& Vlm::groups() const {
  return state_->groups;
}

namespace {
/// What every piece is told of a micro-batch.
DecoderInput entry_of(const ModelInput& input) {
  return {.position_3T = input.position_3T,
          .row_starts = input.row_starts,
          .vision_index_M = input.vision_index_M,
          .cut = input.cut,
          .routing = input.routing};
}

/// Whether vision tokens come from the ranks of cp, each of which makes some.
bool is_spread(const ModelInput& input) {
  return !input.vision.splits.send.empty();
}

/// From the ranks that made them to the ranks that hold their rows.
void exchange(VisionTokens& vision, const VisionExchange& way, const std::shared_ptr<Comm>& group) {
  const auto passed = [&](const Tensor& x) { return exchange_rows(x.index_select(0, way.order_S), way.splits, group); };
  vision.tokens_MD = passed(vision.tokens_MD);
  for (Tensor& tap : vision.taps_MD) tap = passed(tap);
}
}  // namespace

/// The stream at the entry of the decoder.
DecoderInput Vlm::enter(const ModelInput& input) const {
  const State& s = *state_;
  const int64_t rows = input.tokens_T.size(0);
  HANOK_REQUIRE(input.position_3T.dim() == 2 && input.position_3T.size(0) == 3 && input.position_3T.size(1) == rows,
                kShape)
      << "positions: got " << input.position_3T.sizes() << ", expected [3, " << rows << "]; model input";
  DecoderInput decoder = entry_of(input);
  s.execution.will_use(s.entry_weights);
  const bool has_pictures = input.pixels_PC.defined() && input.pixels_PC.size(0) > 0;
  const int64_t placeholders = input.vision_index_M.defined() ? input.vision_index_M.size(0) : 0;
  const int64_t per_token = s.config.connector.merge * s.config.connector.merge;
  const int64_t tokens = has_pictures ? input.pixels_PC.size(0) / per_token : 0;
  HANOK_REQUIRE(is_spread(input) || tokens == placeholders, kShape)
      << "vision tokens: got " << tokens << " from the pictures, expected " << placeholders
      << " placeholders in the text; model input";
  VisionTokens vision;
  if (has_pictures) {
    HANOK_REQUIRE(s.tower, kConfig) << "model.tower: got none, expected a vision tower; the data holds pictures";
    const TowerOutput features = s.tower->forward(input.pixels_PC, input.grid_I3, s.execution);
    vision = s.connector->forward(features, tokens);
    if (is_spread(input)) exchange(vision, input.vision, s.groups.cp);
  }
  // After the tower: so its gradient comes before the tower's, and the table's can be summed meanwhile.
  decoder.x_TD = s.decoder->embed(input.tokens_T);
  if (has_pictures) {
    decoder.x_TD = write_rows(decoder.x_TD, input.vision_index_M, vision.tokens_MD);
    decoder.taps_MD = std::move(vision.taps_MD);
  }
  return decoder;
}

ModelOutput Vlm::forward(const ModelInput& input) const {
  return {run_piece(0, input, {}).front()};
}

std::vector<Tensor> Vlm::stream_into(int piece, const ModelInput& input) const {
  const State& s = *state_;
  if (piece == 0) return {};
  const auto options = at::TensorOptions().dtype(s.dtype).device(s.device);
  const int64_t width = s.config.decoder.hidden, rows = sequence_range(input.tokens_T.size(0), s.groups).size;
  std::vector<Tensor> out = {at::empty({rows, width}, options)};
  const int64_t taps = static_cast<int64_t>(s.config.taps.size()) - s.pieces.at(piece).mlps().first;
  const int64_t tokens = input.vision_index_M.defined() ? input.vision_index_M.size(0) : 0;
  const bool has_pictures = tokens > 0 || is_spread(input);
  for (int64_t i = 0; i < taps && has_pictures; ++i) out.push_back(at::empty({tokens, width}, options));
  return out;
}

std::vector<Tensor> Vlm::run_piece(int piece, const ModelInput& input, const std::vector<Tensor>& stream) const {
  const State& s = *state_;
  const PieceRange& range = s.pieces.at(piece);
  DecoderInput decoder;
  if (range.is_first) {
    decoder = enter(input);
  } else {
    decoder = entry_of(input);
    decoder.x_TD = stream.front();
    decoder.taps_MD.assign(stream.begin() + 1, stream.end());
  }
  const auto used = static_cast<size_t>(range.mlps().size());
  std::vector<Tensor> out = {s.decoder->forward(decoder, range, s.execution)};
  for (size_t i = used; i < decoder.taps_MD.size() && !range.is_last; ++i) out.push_back(decoder.taps_MD[i]);
  return out;
}

void initialise(Vlm& model, uint64_t seed) {
  for (Param& param : model.params()) initialise(param, seed, model.groups());
}

}  // namespace hanok
