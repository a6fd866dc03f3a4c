#include "model/vlm.h"

#include "base/error.h"
#include "model/layers/token_rows.h"
#include "model/plans.h"
#include "model/registry.h"
#include "parallel/init.h"

namespace hanok {

struct Vlm::State {
  ModelConfig config;
  Groups groups;
  ParamTable params;
  std::unique_ptr<Tower> tower;
  std::unique_ptr<Connector> connector;
  std::unique_ptr<Decoder> decoder;
  Execution execution;
};

Vlm::Vlm(const ModelConfig& config, const Groups& groups, at::ScalarType dtype, at::Device device)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.config = config;
  s.groups = groups;
  const Plan plan = plan_of(config);
  BuildState build{.plan = &plan,
                   .groups = &s.groups,
                   .params = &s.params,
                   .dtype = dtype,
                   .device = device,
                   .init_std = config.init_std};
  const BuildContext root(build);
  s.tower = make_tower(s.config, root.in("tower"));
  s.connector = make_connector(s.config, root.in("connector"));
  s.decoder = make_decoder(s.config, root.in("decoder"));
  plan.check_all_used(build.modules);
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
void Vlm::set_execution(const Execution& execution) {
  state_->execution = execution;
}
VocabShard Vlm::head() const {
  return state_->decoder->head();
}
const Groups& Vlm::groups() const {
  return state_->groups;
}

ModelOutput Vlm::forward(const ModelInput& input) const {
  const State& s = *state_;
  const int64_t rows = input.tokens_T.size(0);
  HANOK_REQUIRE(input.position_3T.dim() == 2 && input.position_3T.size(0) == 3 && input.position_3T.size(1) == rows,
                kShape)
      << "positions: got " << input.position_3T.sizes() << ", expected [3, " << rows << "]; model input";
  DecoderInput decoder{.x_TD = s.decoder->embed(input.tokens_T),
                       .position_3T = input.position_3T,
                       .row_starts = input.row_starts,
                       .vision_index_M = input.vision_index_M};
  const bool has_pictures = input.pixels_PC.defined() && input.pixels_PC.size(0) > 0;
  const int64_t placeholders = input.vision_index_M.defined() ? input.vision_index_M.size(0) : 0;
  const int64_t per_token = s.config.connector.merge * s.config.connector.merge;
  const int64_t tokens = has_pictures ? input.pixels_PC.size(0) / per_token : 0;
  HANOK_REQUIRE(tokens == placeholders, kShape) << "vision tokens: got " << tokens << " from the pictures, expected "
                                                << placeholders << " placeholders in the text; model input";
  if (has_pictures) {
    HANOK_REQUIRE(s.tower, kConfig) << "model.tower: got none, expected a vision tower; the data holds pictures";
    const TowerOutput features = s.tower->forward(input.pixels_PC, input.grid_I3, s.execution);
    VisionTokens vision = s.connector->forward(features, tokens);
    decoder.x_TD = write_rows(decoder.x_TD, input.vision_index_M, vision.tokens_MD);
    decoder.taps_MD = std::move(vision.taps_MD);
  }
  return {s.decoder->forward(decoder, s.execution)};
}

void initialise(Vlm& model, uint64_t seed) {
  for (Param& param : model.params()) initialise(param, seed, model.groups());
}

}  // namespace hanok
