#include "launch/plan_report.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/error.h"
#include "trainer/configured_dtype.h"
#include "trainer/progress.h"

namespace hanok {
namespace {

using Json = nlohmann::ordered_json;

const char* cut_text(const ParamSpec& spec) {
  return spec.cut_dim < 0 ? "whole" : spec.cut_dim == 0 ? "rows" : "columns";
}

/// Rows that differ only in their layer index are one line: "decoder.layers.*.attn.qkv.weight x36".
struct TableRow {
  std::string name;
  const Param* param;
  int layers = 1;
};

std::vector<TableRow> table_rows(const ParamTable& params) {
  static const std::regex index("\\.[0-9]+\\.");
  std::vector<TableRow> rows;
  for (const Param& param : params) {
    const std::string name = std::regex_replace(param.spec.name, index, ".*.");
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const TableRow& row) {
      return row.name == name && row.param->spec.shape == param.spec.shape && row.param->trainable == param.trainable;
    });
    if (same != rows.end()) {
      ++same->layers;
    } else {
      rows.push_back({name, &param});
    }
  }
  return rows;
}

void print_table(const ParamTable& params) {
  std::printf("  %-46s %-20s %-8s %-20s %s\n", "parameter", "global shape", "cut", "shape on rank 0", "trains");
  for (const TableRow& row : table_rows(params))
    std::printf("  %-46s %-20s %-8s %-20s %s\n",
                (row.layers > 1 ? concat(row.name, " x", row.layers) : row.name).c_str(),
                concat(row.param->spec.shape).c_str(),
                cut_text(row.param->spec),
                concat(row.param->value.sizes().vec()).c_str(),
                row.param->trainable ? "yes" : "frozen");
}

void print_amounts(const char* title, const std::vector<Amount>& amounts) {
  std::printf("  %s\n", title);
  for (const Amount& amount : amounts)
    if (amount.bytes > 0) std::printf("    %-40s %12s\n", amount.name.c_str(), human_bytes(amount.bytes).c_str());
}

struct NamedFlops {
  const char* name;
  const Flops* flops;
};
std::vector<NamedFlops> parts_of(const FlopsByPart& f) {
  return {{"tower", &f.tower},
          {"tower attention", &f.tower_attention},
          {"connector", &f.connector},
          {"decoder matrices", &f.decoder},
          {"attention (causal half)", &f.attention},
          {"head", &f.head}};
}

void print_stages(const Estimate& e) {
  if (e.stages.size() < 2) return;
  std::printf("  %-16s %7s %14s %12s %16s %6s %12s\n",
              "pipeline stage",
              "layers",
              "parameters",
              "always",
              "a micro-batch",
              "live",
              "at the most");
  for (size_t i = 0; i < e.stages.size(); ++i) {
    const Estimate::Stage& s = e.stages[i];
    std::printf("  %-16zu %7g %14.0f %12s %16s %6.1f %12s\n",
                i,
                s.layers,
                s.parameters,
                human_bytes(s.always).c_str(),
                human_bytes(s.kept).c_str(),
                s.live,
                human_bytes(s.peak).c_str());
  }
}

void print_flops(const Estimate& e) {
  const Flops all = e.flops.sum();
  std::printf("  FLOPs of a step, all ranks: %s (forward %s, backward %s; run again %s)\n",
              short_number(all.total()).c_str(),
              short_number(all.forward).c_str(),
              short_number(all.backward).c_str(),
              short_number(all.again).c_str());
  for (const auto& [name, flops] : parts_of(e.flops))
    if (flops->forward > 0)
      std::printf(
          "    %-40s %12s %5.1f %%\n", name, short_number(flops->total()).c_str(), 100 * flops->total() / all.total());
}

struct NamedSeconds {
  const char* name;
  double seconds;
};
std::vector<NamedSeconds> parts_of(const Estimate::Seconds& s) {
  return {{"matrices", s.matrices},
          {"attention", s.attention},
          {"norms, rotations, activations", s.memory},
          {"optimizer", s.optimizer},
          {"tensor parallel collectives", s.tensor_parallel},
          {"context parallel collectives", s.context_parallel},
          {"expert parallel exchanges", s.expert_parallel},
          {"copies to and from the host", s.offload},
          {"gradients and weights, not hidden", s.data_parallel},
          {"waiting for other stages", s.pipeline}};
}

void print_seconds(const Estimate& e) {
  if (!e.seconds) return;
  const double total = e.seconds->total(), ranks = e.mesh.world();
  std::printf("  time of a step, from the ceilings: %.3f s; %s tok/s, %s tok/s and %s FLOP/s a GPU\n",
              total,
              short_number(e.tokens_per_s()).c_str(),
              short_number(e.tokens_per_s() / ranks).c_str(),
              short_number(e.flops.sum().total() / total / ranks).c_str());
  for (const auto& [name, seconds] : parts_of(*e.seconds))
    if (seconds > 0) std::printf("    %-40s %10.3f s %5.1f %%\n", name, seconds, 100 * seconds / total);
  if (e.seconds->gradients_travel > 0)
    std::printf("    (gradients travel for %.3f s, mostly under the backward; weights for %.3f s, under the forward)\n",
                e.seconds->gradients_travel,
                e.seconds->weights_travel);
}

double memory_of(const GpuConfig& gpu) {
  return gpu.memory_gib * (1 << 30);
}

void print_verdict(const GpuVerdict& verdict) {
  const GpuConfig& gpu = *verdict.gpu;
  const double left = memory_of(gpu) - verdict.estimate.peak_bytes;
  const bool yes = fits(verdict.estimate, gpu);
  std::printf("  fits %s: %s; needs %s of %s, %s %s%s\n",
              gpu.key.c_str(),
              yes ? "yes" : "no",
              human_bytes(verdict.estimate.peak_bytes).c_str(),
              human_bytes(memory_of(gpu)).c_str(),
              human_bytes(std::abs(left)).c_str(),
              yes ? "left" : "too much",
              yes && left < 0.05 * memory_of(gpu) ? " (tight: fragments of the allocator may take that)" : "");
  if (yes) return;
  if (verdict.suggestions.empty()) {
    std::printf(
        "    no change of recompute, rows, seq_len, tp or dp up to 64 makes it fit: take a larger GPU or a "
        "smaller model\n");
    return;
  }
  std::printf("    would fit:\n");
  for (const Suggestion& s : verdict.suggestions) {
    std::string sets;
    for (const std::string& set : s.sets) sets += " --set " + set;
    std::printf("     %s  (%d GPU%s, %s each, about %s tok/s)\n",
                sets.c_str(),
                s.world,
                s.world > 1 ? "s" : "",
                human_bytes(s.estimate.peak_bytes).c_str(),
                short_number(s.estimate.tokens_per_s()).c_str());
  }
}

void print_gpu_table(const std::vector<GpuVerdict>& verdicts) {
  std::printf("  %-10s %11s %11s %11s  %-5s %9s %10s  %s\n",
              "GPU",
              "memory",
              "needs",
              "left",
              "fits",
              "step",
              "tok/s",
              "dtype");
  for (const GpuVerdict& v : verdicts) {
    const double left = memory_of(*v.gpu) - v.estimate.peak_bytes;
    std::printf("  %-10s %11s %11s %11s  %-5s %7.3f s %10s  %s\n",
                v.gpu->key.c_str(),
                human_bytes(memory_of(*v.gpu)).c_str(),
                human_bytes(v.estimate.peak_bytes).c_str(),
                left < 0 ? "-" : human_bytes(left).c_str(),
                fits(v.estimate, *v.gpu) ? "yes" : "no",
                v.estimate.seconds->total(),
                short_number(v.estimate.tokens_per_s()).c_str(),
                configured_name(v.estimate.dtype));
  }
}

Json json_of(const std::vector<Amount>& amounts) {
  Json out = Json::object();
  for (const Amount& amount : amounts) {
    const size_t first = amount.name.find_first_not_of(' ');
    out[amount.name.substr(first)] = amount.bytes;
  }
  return out;
}

Json json_of(const Estimate& e) {
  Json flops = Json::object();
  for (const auto& [name, part] : parts_of(e.flops))
    flops[name] = {{"forward", part->forward}, {"backward", part->backward}, {"again", part->again}};
  Json out = {{"dtype", configured_name(e.dtype)},
              {"attention", e.attention},
              {"parameters", e.parameters},
              {"trainable", e.trainable},
              {"active", e.active},
              {"tokens_per_step", e.tokens_per_step},
              {"micro_batches", e.micro_batches},
              {"bytes",
               {{"always", json_of(e.always)},
                {"activations", json_of(e.kept)},
                {"passing", json_of(e.passing)},
                {"peak", e.peak_bytes},
                {"allowance", e.allowance_bytes},
                {"on_host", e.on_host_bytes}}},
              {"flops", flops},
              {"flops_total", e.flops.sum().total()}};
  for (const Estimate::Stage& s : e.stages)
    out["pipeline"].push_back({{"layers", s.layers},
                               {"parameters", s.parameters},
                               {"always_bytes", s.always},
                               {"micro_batch_bytes", s.kept},
                               {"live_micro_batches", s.live},
                               {"peak_bytes", s.peak}});
  if (e.seconds) {
    Json seconds = Json::object();
    for (const auto& [name, value] : parts_of(*e.seconds)) seconds[name] = value;
    out["seconds"] = {{"total", e.seconds->total()},
                      {"parts", seconds},
                      {"gradients_travel", e.seconds->gradients_travel},
                      {"weights_travel", e.seconds->weights_travel}};
    out["tokens_per_s"] = e.tokens_per_s();
  }
  return out;
}

Json json_of(const GpuVerdict& v) {
  Json suggestions = Json::array();
  for (const Suggestion& s : v.suggestions)
    suggestions.push_back({{"set", s.sets}, {"world", s.world}, {"peak_bytes", s.estimate.peak_bytes}});
  return {{"gpu", v.gpu->key},
          {"memory_bytes", memory_of(*v.gpu)},
          {"fits", fits(v.estimate, *v.gpu)},
          {"left_bytes", memory_of(*v.gpu) - v.estimate.peak_bytes},
          {"would_fit", suggestions},
          {"estimate", json_of(v.estimate)}};
}

}  // namespace

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) bytes /= 1024, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", bytes, units[unit]);
  return text;
}

void print_text(const StagePlan& plan) {
  const Estimate& e = plan.estimate;
  std::cout << "\nstage " << plan.stage.name << " on " << describe(e.mesh)
            << (e.mesh.world() > 1 ? concat(" (", e.mesh.world(), " ranks)") : "") << "\n";
  print_table(plan.planned.model->params());
  if (e.active < e.parameters) std::printf("  a token meets %.0f of the %.0f parameters\n", e.active, e.parameters);
  std::printf("  parameters %.0f, of which %.0f train; %.0f tokens a step in %lld micro-batch%s of a rank\n",
              e.parameters,
              e.trainable,
              e.tokens_per_step,
              static_cast<long long>(e.micro_batches),
              e.micro_batches == 1 ? "" : "es");
  std::printf("  supposed: full rows, one sample each, %.0f %% of the tokens from pictures",
              100 * plan.supposed.picture_share);
  if (plan.supposed.picture_share > 0)
    std::printf(" of %lld patches", static_cast<long long>(plan.supposed.patches_per_picture));
  std::printf(", every other token with a label; %s, attention by %s\n", configured_name(e.dtype), e.attention.c_str());
  std::cout << std::flush;
  print_amounts("bytes on each rank, always", e.always);
  print_amounts("bytes on each rank, from forward to backward", e.kept);
  print_amounts("bytes on each rank, for a moment, not all at once", e.passing);
  std::printf("    %-40s %12s\n", "together, at the most", human_bytes(e.peak_bytes).c_str());
  if (e.on_host_bytes > 0) std::printf("    %-40s %12s\n", "in host memory", human_bytes(e.on_host_bytes).c_str());
  print_stages(e);
  print_flops(e);
  print_seconds(e);
  if (plan.verdicts.size() == 1) print_verdict(plan.verdicts.front());
  if (plan.verdicts.size() > 1) print_gpu_table(plan.verdicts);
  std::fflush(stdout);
}

std::string to_json(const RunConfig& config, const std::vector<StagePlan>& plans) {
  Json stages = Json::array();
  for (const StagePlan& plan : plans) {
    const MeshShape& m = plan.estimate.mesh;
    Json params = Json::array();
    for (const TableRow& row : table_rows(plan.planned.model->params()))
      params.push_back({{"name", row.name},
                        {"layers", row.layers},
                        {"shape", row.param->spec.shape},
                        {"cut", cut_text(row.param->spec)},
                        {"local_shape", row.param->value.sizes().vec()},
                        {"trains", row.param->trainable}});
    Json verdicts = Json::array();
    for (const GpuVerdict& verdict : plan.verdicts) verdicts.push_back(json_of(verdict));
    stages.push_back(
        {{"stage", plan.stage.name},
         {"mesh", {{"tp", m.tp}, {"dp", m.dp}, {"pp", m.pp}, {"cp", m.cp}, {"ep", m.ep}}},
         {"world", m.world()},
         {"supposed",
          {{"picture_share", plan.supposed.picture_share}, {"patches_per_picture", plan.supposed.patches_per_picture}}},
         {"parameters", params},
         {"estimate", json_of(plan.estimate)},
         {"gpus", verdicts}});
  }
  return Json{{"run", config.name}, {"stages", stages}}.dump(1);
}

}  // namespace hanok
