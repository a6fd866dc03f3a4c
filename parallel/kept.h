// What expensive operations of a block gave, for the backward that runs the block again: there they take their results
// from here, and only what is cheap is computed twice.
#pragma once

#include <functional>
#include <vector>

#include "base/tensor.h"

namespace hanok {

/// The result of an expensive operation: computed, and kept where a block is recorded; in a block that runs again what
/// it gave the first time. Called inside autograd functions, so that the graph is the same both times.
Tensor kept(const std::function<Tensor()>& compute);
/// The same for attention, whose work grows with the square of a sample: its several results.
std::vector<Tensor> kept_attention(const std::function<std::vector<Tensor>()>& compute);
/// A part of a sum that the next operation takes over ranks: no backward reads it where that result is known, and its
/// shape is kept in its place.
Tensor kept_part(const std::function<Tensor()>& compute);

/// What a block that runs again keeps of its first run.
enum class Keep {
  kInput,      // its input alone
  kAttention,  // and what attention gave
  kResults,    // and those of matrix products, sums and exchanges over ranks
};

/// An entry for every operation, in their order: a result; a meta tensor where the shape is enough; undefined where the
/// operation runs again. Several results stand behind a meta tensor of as many elements.
using KeptResults = std::vector<Tensor>;

/// While it lives, the operations of this thread are recorded.
class RecordResults {
 public:
  explicit RecordResults(Keep keep);
  ~RecordResults();
  RecordResults(const RecordResults&) = delete;
  RecordResults& operator=(const RecordResults&) = delete;
  void add(const Tensor& result, bool is_part);
  void add_attention(const std::vector<Tensor>& results);
  /// `last_is_unread`: no backward reads the values of the last result: it never runs again.
  KeptResults finish(bool last_is_unread);

 private:
  struct Entry {
    Tensor result;  // meta where only its shape is known, undefined where not even that
    bool is_part = false;
    bool is_kept = false;
  };
  Keep keep_;
  std::vector<Entry> entries_;
};

/// While it lives, operations of this thread take their results from `results`, which must be those of the same
/// operations; each is let go when it has been taken. `device`: where tensors are made of which the shape is known.
class TakeResults {
 public:
  TakeResults(KeptResults& results, at::Device device);
  ~TakeResults();
  TakeResults(const TakeResults&) = delete;
  TakeResults& operator=(const TakeResults&) = delete;
  /// Undefined: the operation runs.
  Tensor next();
  /// The same of an operation with several results; empty: it runs.
  std::vector<Tensor> next_all();

 private:
  Tensor next_entry();
  KeptResults& results_;
  at::Device device_;
  size_t next_ = 0;
};

}  // namespace hanok
