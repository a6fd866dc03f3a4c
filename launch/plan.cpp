#include <algorithm>
#include <cstdio>
#include <iostream>
#include <regex>

#include "base/error.h"
#include "configs/schema/check.h"
#include "configs/schema/read.h"
#include "launch/bootstrap.h"
#include "launch/command.h"
#include "model/vlm.h"
#include "trainer/optimizer.h"
#include "trainer/weights.h"

namespace hanok {
namespace {

/// "tp2,dp4" -> layout.
ParallelConfig parse_mesh(const std::string& text, ParallelConfig layout) {
  static const std::regex axis("(tp|dp|pp|cp|ep)([0-9]{1,5})");
  for (auto it = std::sregex_iterator(text.begin(), text.end(), axis); it != std::sregex_iterator(); ++it) {
    const int64_t size = std::stoll((*it)[2]);
    const std::string name = (*it)[1];
    (name == "tp"   ? layout.tp
     : name == "dp" ? layout.dp
     : name == "pp" ? layout.pp
     : name == "cp" ? layout.cp
                    : layout.ep) = size;
  }
  HANOK_REQUIRE(std::regex_match(text, std::regex("((tp|dp|pp|cp|ep)[0-9]{1,5})(,(tp|dp|pp|cp|ep)[0-9]{1,5})*")), kConfig)
      << "--mesh: got " << text << ", expected axes like tp2,dp4";
  return layout;
}

std::string human_bytes(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) bytes /= 1024, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", bytes, units[unit]);
  return text;
}

const char* cut_text(const ParamSpec& spec) {
  return spec.cut_dim < 0 ? "whole" : spec.cut_dim == 0 ? "rows" : "columns";
}

bool is_trainable(const StageConfig& stage, const std::string& name) {
  return std::any_of(
      stage.trainable.begin(), stage.trainable.end(), [&](const auto& glob) { return glob_match(glob, name); });
}

int64_t count(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

/// Rows that differ only in their layer index are one line: "decoder.layers.*.attn.qkv.weight x36".
struct TableRow {
  std::string name;
  const ParamSpec* spec;
  std::vector<int64_t> local;
  bool trainable;
  int layers = 1;
};

std::vector<TableRow> table_rows(const Vlm& model, const StageConfig& stage) {
  static const std::regex index("\\.[0-9]+\\.");
  std::vector<TableRow> rows;
  for (const Param& param : model.params()) {
    const std::string name = std::regex_replace(param.spec.name, index, ".*.");
    const auto same = std::find_if(rows.begin(), rows.end(), [&](const TableRow& row) {
      return row.name == name && row.spec->shape == param.spec.shape;
    });
    if (same != rows.end()) {
      ++same->layers;
    } else {
      rows.push_back(
          {name, &param.spec, local_shape(param.spec, model.groups()), is_trainable(stage, param.spec.name)});
    }
  }
  return rows;
}

void print_stage(const RunConfig& config, const StageConfig& stage, const ParallelConfig& layout) {
  const int64_t dp = std::max<int64_t>(1, layout.dp);
  const Mesh mesh({.pp = static_cast<int>(layout.pp),
                   .dp = static_cast<int>(dp),
                   .cp = static_cast<int>(layout.cp),
                   .tp = static_cast<int>(layout.tp)});
  const Groups groups = make_planned_groups(mesh, 0, layout.sequence && layout.tp > 1);
  const bool half = config.model.dtype == "bfloat16" || config.model.dtype == "auto";
  const Vlm model(config.model, groups, half ? at::kBFloat16 : at::kFloat, at::kMeta);

  std::cout << "\nstage " << stage.name << " on " << describe(groups.mesh.shape()) << " (" << groups.mesh.world()
            << " ranks)\n";
  std::printf("  %-46s %-22s %-8s %-22s %s\n", "parameter", "global shape", "cut", "shape on rank 0", "trains");
  int64_t total = 0, trainable = 0, local = 0, local_trainable = 0;
  for (const TableRow& row : table_rows(model, stage)) {
    const std::string name = row.layers > 1 ? concat(row.name, " x", row.layers) : row.name;
    std::printf("  %-46s %-22s %-8s %-22s %s\n",
                name.c_str(),
                concat(row.spec->shape).c_str(),
                cut_text(*row.spec),
                concat(row.local).c_str(),
                row.trainable ? "yes" : "frozen");
    total += row.layers * count(row.spec->shape);
    local += row.layers * count(row.local);
    if (row.trainable)
      trainable += row.layers * count(row.spec->shape), local_trainable += row.layers * count(row.local);
  }
  const double weight = half ? 2 : 4, grad = stage.optimizer.grad_dtype == "bfloat16" ? 2 : 4;
  const double weights_bytes = local * weight, grads_bytes = local_trainable * grad,
               optimizer_bytes = 12.0 * local_trainable / dp;
  std::cout << "  parameters " << total << ", of which " << trainable << " train\n"
            << "  on each rank: weights " << human_bytes(weights_bytes) << " (" << (half ? "bfloat16" : "float32")
            << "), gradients " << human_bytes(grads_bytes) << ", optimizer " << human_bytes(optimizer_bytes)
            << " (ZeRO-1 over dp " << dp << "), together " << human_bytes(weights_bytes + grads_bytes + optimizer_bytes)
            << " before activations\n";
}

}  // namespace

int plan(const Arguments& arguments) {
  RunConfig config = load_run_config(arguments, 0);
  if (!config.model.path.empty()) read_model_folder(config.model);
  if (world_rank() != 0) return 0;
  std::cout << echo(config);
  for (const StageConfig& stage : config.stages) {
    ParallelConfig layout = arguments.mesh.empty() ? stage.parallel : parse_mesh(arguments.mesh, stage.parallel);
    check_model(config.model, layout);
    print_stage(config, stage, layout);
  }
  return 0;
}

}  // namespace hanok
