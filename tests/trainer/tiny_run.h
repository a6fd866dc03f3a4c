// A folder with a byte tokenizer and real digits, and a config of a small complete Qwen3-VL that trains on them.
#pragma once

#include <string>

#include "configs/schema/config.h"

namespace hanok {

class TinyRun {
 public:
  /// `name` makes the folder; an earlier one of that name is removed.
  explicit TinyRun(const std::string& name);
  ~TinyRun();
  /// Two stages, "align" (connector only, 3 steps) and "all" (5 steps), 48 digits to train on, 16 held out, 6 to
  /// predict
  /// ("predict": no answers). Data parallel over what is left.
  RunConfig config() const;
  std::string file(const std::string& name) const { return folder_ + "/" + name; }

 private:
  std::string folder_;
};

}  // namespace hanok
