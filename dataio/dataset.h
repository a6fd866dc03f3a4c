// A packed HDF5 file, read by sample number.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dataio/sample.h"

namespace hanok {

/// Small facts of every sample are held in memory (about 24 bytes each); tokens and pictures are read on demand.
/// HDF5 is entered by one thread at a time (a process-wide lock inside).
class Dataset {
 public:
  /// errors: kData if the file is damaged, of a newer schema, or not a packed file
  explicit Dataset(const std::string& file);
  ~Dataset();
  int64_t size() const;
  int64_t num_tokens(int64_t index) const;  // of one sample
  int64_t num_label_tokens(int64_t index) const;
  std::string id(int64_t index) const;
  Sample read(int64_t index) const;
  const std::string& file() const;
  /// Key of what was packed, from the file's attributes: part of a checkpoint's identity.
  const std::string& content_key() const;
  int64_t image_token() const;
  int64_t video_token() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
