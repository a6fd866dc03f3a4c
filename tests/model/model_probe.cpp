// Runs our model on what tests/oracle/model.py wrote: weights by their Hugging Face names and one packed row.
//   model_probe run FOLDER...          config.json + case.safetensors -> result.safetensors (y, logits, nll, loss,
//   gradients) model_probe count SHAPE.yaml...    number of parameters, one a line
#include <torch/csrc/autograd/autograd.h>

#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "configs/schema/read.h"
#include "dataio/safetensors.h"
#include "model/hf/name_map.h"
#include "model/loss/cross_entropy.h"
#include "model/vlm.h"

namespace hanok {
namespace {

constexpr char kWeightPrefix[] = "weight/";

void load_weights(Vlm& model, const SafetensorsFile& file) {
  const NameMap& map = name_map_of(model.config().known_family());
  std::vector<ParamSpec> specs;
  for (const Param& param : model.params()) specs.push_back(param.spec);
  std::set<std::string> names;
  for (const auto& [name, entry] : file.header().tensors)
    if (name.rfind(kWeightPrefix, 0) == 0) names.insert(name.substr(sizeof kWeightPrefix - 1));
  map.check_complete(specs, model.config(), names);
  at::NoGradGuard no_grad;
  for (Param& param : model.params())
    for (const HfPart& part : map.parts(param.spec, model.config())) {
      const Tensor theirs = file.view(kWeightPrefix + part.name);
      HANOK_REQUIRE(theirs.sizes() == at::IntArrayRef(part.shape), kCheckpoint)
          << part.name << ": got " << theirs.sizes() << ", expected " << part.shape;
      Tensor ours = param.value.narrow(part.dim, part.begin, part.size);
      if (part.inner_size > 0) ours = ours.narrow(1, part.inner_begin, part.inner_size);
      ours.copy_(part.transposed ? theirs.transpose(-1, -2) : theirs.reshape(ours.sizes()));
    }
}

/// The stretch of a gradient that is one HF tensor.
Tensor as_theirs(const Tensor& grad, const HfPart& part) {
  Tensor stretch = grad.narrow(part.dim, part.begin, part.size);
  if (part.inner_size > 0) stretch = stretch.narrow(1, part.inner_begin, part.inner_size);
  return part.transposed ? stretch.transpose(-1, -2).contiguous() : stretch.reshape(part.shape).contiguous();
}

void run(const std::string& folder) {
  std::ifstream json(folder + "/config.json");
  const nlohmann::json settings = nlohmann::json::parse(json);
  ModelConfig config;
  read_hf_config(settings["model"], config);
  std::ofstream(folder + "/written.json") << write_hf_config(config, settings["dtype"]);
  config.experts_on_disk = settings.value("experts_on_disk", "auto");
  const at::ScalarType dtype = settings["dtype"] == "bfloat16" ? at::kBFloat16 : at::kFloat;
  const SafetensorsFile file(folder + "/case.safetensors");
  Vlm model(config, make_single_groups(), dtype, at::kCPU);
  load_weights(model, file);
  model.set_execution({.recompute = {.every = settings["recompute_every"].get<int64_t>()}});
  ModelInput input{.tokens_T = file.view("tokens"),
                   .position_3T = file.view("position"),
                   .row_starts = file.view("row_starts"),
                   .pixels_PC = file.view("pixels"),
                   .grid_I3 = file.view("grid"),
                   .vision_index_M = file.view("vision_index")};
  if (config.decoder.is_moe()) {
    const Tensor row = file.view("row");
    input.routing =
        std::make_shared<Routing>(Routing{.row_T = row,
                                          .tokens_of_step = static_cast<double>(row.ge(0).sum().item<int64_t>()),
                                          .coefficient = config.decoder.aux_loss,
                                          .layers = config.decoder.layers,
                                          .expert_layers = config.decoder.num_expert_layers(),
                                          .experts = config.decoder.experts,
                                          .experts_per_token = config.decoder.experts_per_token});
  }
  const Tensor targets = file.view("targets"), weights = file.view("label_weights");
  const ModelOutput output = model.forward(input);
  const Tensor nll = label_losses(output.y_TD, model.head(), targets, model.groups());
  const Tensor loss = linear_cross_entropy(output.y_TD, model.head(), targets, weights, model.groups());
  loss.backward();
  std::map<std::string, Tensor> results;
  const double balance = input.routing ? config.decoder.aux_loss * input.routing->aux.item<double>() : 0;
  results["loss"] = (loss.detach() + balance).view({1});
  results["nll"] = nll;
  results["logits"] = at::mm(output.y_TD.detach(), model.head().weight_VD.detach().t());
  for (Param& param : model.params()) {
    if (!param.value.grad().defined()) continue;
    for (const HfPart& part : name_map_of(config.known_family()).parts(param.spec, config))
      results["grad/" + part.name] = as_theirs(param.value.grad(), part);
  }
  std::vector<TensorPlan> plan;
  for (const auto& [name, tensor] : results) plan.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
  write_safetensors(
      folder + "/result.safetensors", plan, {}, [&](const std::string& name) { return results.at(name); });
}

void count(const std::string& shape) {
  const Vlm model(read_model_config(shape), make_single_groups(), at::kBFloat16, at::kMeta);
  int64_t total = 0;
  for (const Param& param : model.params()) total += param.value.numel();
  std::printf("%lld\n", static_cast<long long>(total));
}

}  // namespace
}  // namespace hanok

int main(int argc, char** argv) {
  try {
    const std::string verb = argc > 1 ? argv[1] : "";
    for (int i = 2; i < argc; ++i) {
      if (verb == "run") hanok::run(argv[i]);
      if (verb == "count") hanok::count(argv[i]);
    }
    return 0;
  } catch (const hanok::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
