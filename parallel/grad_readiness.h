// Which buckets of gradients are complete.
#pragma once

#include <optional>
#include <vector>

#include "parallel/grad_layout.h"

namespace hanok {

/// One step: what backwards have added to the parameters, and which bucket may leave next. They leave in one order, the
/// last one first, on every rank: the sums over ranks meet, whichever gradients come first or not at all on one of
/// them. Shared buckets are left out: they are for the end.
class GradReadiness {
 public:
  GradReadiness(const GradLayout& layout, size_t num_params);
  void start();
  /// As GradSync's; parameters that do not train are passed over.
  void expect_last(int param, bool only_put_off);
  void expect_no_more(int param);
  void backward_passed(int param);
  void put_off(int param);
  void added(int param);
  /// The bucket that leaves now, if there is one: ask until there is none. `even_if_incomplete`: at the end.
  std::optional<size_t> take_next(bool even_if_incomplete = false);
  /// Whether the parameter's bucket was taken in this step: its gradient must not change any more.
  bool has_left(int param) const;

 private:
  struct Gradient {
    int bucket = -1;                                                    // -1: does not train
    int put_off = 0;                                                    // products that have still to be added
    bool is_expected = false, has_passed = false, is_complete = false;  // has_passed: the last backward, since expected
  };
  void complete(Gradient& gradient);

  std::vector<Gradient> gradients_;   // by parameter
  std::vector<int> sizes_, missing_;  // by bucket: parameters, and those that are not complete
  size_t num_shared_ = 0, left_ = 0;  // buckets [left_, end) have left
};

}  // namespace hanok
