// A packed HDF5 file, read by sample number.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dataio/sample.h"

namespace hanok {

/// Two lengths of every sample are held in memory (8 bytes); everything else is read on demand, from any thread (HDF5
/// is entered by one thread at a time, a process-wide lock inside). The index is verified when the file is opened, a
/// sample when it is read.
class Dataset {
 public:
  /// errors: kData if the file is damaged, of a newer schema, or not a packed file
  explicit Dataset(const std::string& file);
  ~Dataset();
  int64_t size() const;
  int64_t num_tokens(int64_t index) const;  // of one sample
  int64_t num_label_tokens(int64_t index) const;
  std::string id(int64_t index) const;
  /// errors: kData naming the sample if its checksum is wrong
  Sample read(int64_t index) const;
  const std::string& file() const;
  /// Checksum of what was packed, every sample's own checksum in it: part of a checkpoint's identity. The same data
  /// packed anywhere has the same.
  const std::string& content_key() const;
  /// What was packed and how: an attribute of the file (pack/format.md). errors: kData if there is none of that name
  std::string provenance(const std::string& key) const;
  int64_t image_token() const;
  int64_t video_token() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hanok
