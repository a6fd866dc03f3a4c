// What a pack is made from, and the key that names it: equal key, equal file.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "configs/schema/config.h"
#include "dataio/pack.h"

namespace hanok {

struct PackPlan {
  std::string name, image_root;  // image_root is absolute
  int64_t num_records = 0;
  uint64_t source_xxh3 = 0;
  std::vector<std::pair<std::string, std::string>> keyed;  // what decides the content; attributes of the file
  std::string key;                                         // 16 hex digits over `keyed`
  std::string file;                                        // in data.cache
};

/// Reads the source once and asks the file system for size and time of every picture; opens none.
/// errors: kConfig, kData, kIo as the importer
PackPlan plan_pack(const std::string& name,
                   const DatasetConfig& dataset,
                   const DataConfig& data,
                   const SampleEncoder& encoder);

/// How patches are made of pixels, and how many there are: two attributes of a packed file.
std::string vision_pixels_text(const VisionPrep& prep);
std::string vision_sizes_text(const VisionPrep& prep);

}  // namespace hanok
