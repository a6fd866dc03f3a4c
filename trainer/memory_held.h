// What holds the memory of a GPU.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "configs/schema/config.h"

namespace hanok {

struct HeldBytes {
  std::string kind;
  double bytes = 0;
};

/// Noted while a stage is set up, one kind after the other; nothing on a CPU.
class MemoryHeld {
 public:
  explicit MemoryHeld(at::Device device);
  /// What was allocated since the last note is of this kind.
  void note(std::string kind);
  const std::vector<HeldBytes>& kinds() const { return kinds_; }

 private:
  double allocated() const;
  at::Device device_;
  double noted_ = 0;
  std::vector<HeldBytes> kinds_;
};

/// The text of the error when the GPU refuses an allocation in a stage, of which this was held by kind.
using ExplainRefusal = std::function<std::string(const StageConfig&, const std::vector<HeldBytes>&)>;

}  // namespace hanok
