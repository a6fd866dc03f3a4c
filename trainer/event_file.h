// Scalars for TensorBoard.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace hanok {

/// A TFRecord file of tensorflow.Event protocol buffers with simple scalar values, in a folder that
/// `tensorboard --logdir` is given. Every start of a run adds a file of its own, whose name sorts after the earlier
/// ones whatever the clock says; its first events tell TensorBoard to forget all values at `first_step` and beyond,
/// which a killed start may have left. source: tensorflow/core/util/event.proto, summary.proto (file version
/// brain.Event:2), tfrecord format
class EventFile {
 public:
  using Scalars = std::vector<std::pair<std::string, double>>;
  /// errors: kIo if it cannot be opened
  EventFile(const std::string& folder, int64_t first_step);
  ~EventFile();
  /// With the operating system when this returns; a full disk gives one WARNING. Values are stored as float32.
  void add(int64_t step, const Scalars& scalars);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// CRC-32C (Castagnoli) of the bytes.
uint32_t crc32c(std::string_view bytes);

}  // namespace hanok
