#include "configs/schema/gpu.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "configs/schema/document.h"
#include "configs/schema/read.h"

namespace hanok {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::vector<std::string> names_of(const GpuConfig& gpu) {
  std::vector<std::string> names{gpu.key, lower(gpu.name)};
  for (const std::string& alias : gpu.aliases) names.push_back(lower(alias));
  return names;
}

}  // namespace

std::vector<GpuConfig> read_gpus(const std::string& folder) {
  std::error_code missing;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder, missing))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  HANOK_REQUIRE(!missing && !files.empty(), kIo) << "GPU kinds: got no YAML files, expected configs/gpu/*.yaml; "
                                                 << folder << "; run from the checkout, or install";
  std::sort(files.begin(), files.end());
  std::vector<GpuConfig> gpus;
  for (const auto& file : files) {
    gpus.push_back(read_gpu_config(file.string()));
    GpuConfig& gpu = gpus.back();
    gpu.key = lower(file.stem().string());
    HANOK_REQUIRE(gpu.memory_gib > 0 && gpu.copy_gb_s > 0 && gpu.compute_capability > 0 && gpu.link.bus_gb_s > 0 &&
                      gpu.attention_tf.forward > 0 && gpu.attention_tf.backward > 0 && gpu.matmul_tf.contains("float32"),
                  kConfig)
        << "GPU kind: got " << file.string() << " without one of its numbers, expected memory_gib, copy_gb_s, "
        << "compute_capability, link, attention_tf and matmul_tf.float32; see the files beside it";
  }
  return gpus;
}

const GpuConfig& find_gpu(const std::vector<GpuConfig>& gpus, const std::string& name) {
  std::vector<std::string> keys, all;
  for (const GpuConfig& gpu : gpus) {
    const std::vector<std::string> names = names_of(gpu);
    if (std::find(names.begin(), names.end(), lower(name)) != names.end()) return gpu;
    keys.push_back(gpu.key);
    all.insert(all.end(), names.begin(), names.end());
  }
  const std::string close = nearest(lower(name), all);
  HANOK_FAIL(kConfig) << "--gpu: got " << name << ", expected one of " << keys << ", or all"
                      << (close.empty() ? "" : concat("; did you mean ", close, "?"))
                      << "; to add a kind, write configs/gpu/NAME.yaml";
}

const GpuConfig* match_gpu(const std::vector<GpuConfig>& gpus, const std::string& driver_name, double memory_gib) {
  const GpuConfig* best = nullptr;
  for (const GpuConfig& gpu : gpus) {
    const bool named = lower(driver_name).find(lower(gpu.name)) != std::string::npos;
    if (!named || std::abs(gpu.memory_gib - memory_gib) > 0.1 * gpu.memory_gib) continue;
    if (best == nullptr || gpu.name.size() > best->name.size()) best = &gpu;
  }
  return best;
}

}  // namespace hanok
