// What a kind of GPU can do: configs/gpu/*.yaml, one file a kind. Read by `plan` and `doctor`.
#pragma once

#include <string>
#include <vector>

#include "configs/schema/config.h"

namespace hanok {

struct GpuLink {
  std::string kind;
  double bus_gb_s = 0, latency_us = 25, host_gb_s = 24, network_gb_s = 45;
  int64_t gpus = 8;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("kind", self.kind, "how GPUs of one host reach each other");
    v("bus_gb_s", self.bus_gb_s, "bus bandwidth of large collectives, GB/s", at_least(0.001));
    v("latency_us", self.latency_us, "what a collective takes besides, microseconds", at_least(0));
    v("host_gb_s", self.host_gb_s, "copies to or from pinned host memory, GB/s", at_least(0.001));
    v("gpus", self.gpus, "GPUs of one host", between(1, 1024));
    v("network_gb_s", self.network_gb_s, "from one GPU to another host, GB/s", at_least(0.001));
  }
};

struct GpuAttention {
  double forward = 0, backward = 0, forward_half = 540, backward_half = 1050;

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("forward",
      self.forward,
      "causal attention of a sample of 8,192 tokens, TFLOP/s of the allowed triangle",
      at_least(0));
    v("backward", self.backward, "its backward, five products for the two of the forward", at_least(0));
    v("forward_half",
      self.forward_half,
      "tokens of a sample at which half of the largest rate is reached",
      at_least(0));
    v("backward_half", self.backward_half, "the same of the backward", at_least(0));
  }
};

struct GpuConfig {
  std::string key;  // the file's name without .yaml; not a key of the file
  std::string name;
  std::vector<std::string> aliases;
  double compute_capability = 0, memory_gib = 0, copy_gb_s = 0;
  std::map<std::string, double> matmul_tf;
  double matmul_half = 300, matmul_weight_gradient = 1;
  GpuAttention attention_tf, flash_tf;
  GpuLink link;

  bool has_bfloat16() const { return compute_capability >= 8; }

  template <class Self, class Visitor>
  static void fields(Self& self, Visitor&& v) {
    v("name", self.name, "as the driver says it");
    v("aliases", self.aliases, "as people say it");
    v("compute_capability", self.compute_capability, "major.minor", at_least(5));
    v("memory_gib", self.memory_gib, "memory that programs may use, GiB", at_least(1));
    v("matmul_tf", self.matmul_tf, "matrix products of 8,192^3 by dtype, TFLOP/s", at_least(0.001));
    v("matmul_half",
      self.matmul_half,
      "h of the rate of a product [m, k] x [k, n], which falls as 1 / (1 + h / m + h / k + h / n)",
      at_least(0));
    v("matmul_weight_gradient",
      self.matmul_weight_gradient,
      "products that are added to sums of gradients, beside the rate of others",
      at_least(0.01));
    v("copy_gb_s", self.copy_gb_s, "device copies, bytes read and written, GB/s", at_least(0.001));
    v("attention_tf", self.attention_tf, "attention on packed rows");
    v("flash_tf", self.flash_tf, "flash kernels, where context parallelism takes them; none: attention_tf");
    v("link", self.link, "between GPUs of one host");
  }
};

/// Every kind in the folder, by file name. errors: kIo, kConfig as read_config()
std::vector<GpuConfig> read_gpus(const std::string& folder);
/// By file name, alias or driver's name, without regard to case. errors: kConfig with the nearest name and all names
const GpuConfig& find_gpu(const std::vector<GpuConfig>& gpus, const std::string& name);
/// The kind of a card that reports this name and memory; null if there is none.
const GpuConfig* match_gpu(const std::vector<GpuConfig>& gpus, const std::string& driver_name, double memory_gib);

}  // namespace hanok
