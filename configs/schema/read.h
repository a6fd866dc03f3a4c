// The readers of config.h's fields() lists. A mapping may hold `base: FILE` (or a list), whose keys are its defaults;
// FILE is relative to the file that names it. All other paths are relative to the working directory.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "configs/schema/config.h"

namespace hanok {

/// YAML file + `--set a.b=c` overrides (lists by index or by the `name` of their element: stages.s0.steps=3) -> config.
/// Every stage starts from the top-level `optimizer` and `parallel`.
/// errors: kConfig listing every unknown key (with the nearest known one), wrong type and value out of range at once,
///         each with the file and line, or the --set, that said it; kConfig for a key written twice, or
///         if a file cannot be read
RunConfig read_config(const std::string& file, const std::vector<std::string>& sets);
/// The same from text that echo() wrote.
RunConfig parse_config(const std::string& yaml);
/// A model YAML (configs/model/*.yaml) alone.
ModelConfig read_model_config(const std::string& file);
/// A GPU YAML (configs/gpu/*.yaml) alone; see gpu.h.
struct GpuConfig;
GpuConfig read_gpu_config(const std::string& file);

/// The resolved config as YAML: every key, defaults included. parse_config(echo(c)) equals c.
std::string echo(const RunConfig& config);
/// ("stages.0.optimizer.lr", "0.0001") for every leaf, in fields() order.
std::vector<std::pair<std::string, std::string>> flatten(const RunConfig& config);
/// 16 hex digits over flatten().
std::string config_hash(const RunConfig& config);
/// "key: was X, is Y" for every leaf that differs, leaving out the keys and groups named in `ignored`.
std::vector<std::string> differences(const RunConfig& was,
                                     const RunConfig& is,
                                     const std::vector<std::string>& ignored);
/// The candidate closest to `key` in edits, if it is close enough to be a slip, or one that begins with it; else empty.
std::string nearest(const std::string& key, const std::vector<std::string>& candidates);
/// Path of every key; N stands for a list index, NAME for a free name ("stages.N.optimizer.lr").
std::vector<std::string> known_keys();
/// Markdown table of every key: name, default, meaning, rule.
std::string key_reference();

}  // namespace hanok
