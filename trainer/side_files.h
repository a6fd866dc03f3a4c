// The files of a model folder beside the weights. Private to trainer/.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "configs/schema/config.h"
#include "trainer/weights.h"

namespace hanok {

/// errors: kIo if it cannot be read; kConfig naming the file if it is not JSON
nlohmann::json read_json_file(const std::string& file);

/// Whether the folder holds a chat template, known or not.
bool has_chat_template(const std::string& folder);

/// Whether write_side_files may give a file this name.
bool is_written_side_file(const std::string& name, const ExportOptions& options);

/// Fills `folder` with everything but weights: copies of the source folder's files, or new ones.
/// errors: kIo
void write_side_files(const std::string& folder,
                      const ModelConfig& config,
                      at::ScalarType dtype,
                      const ExportOptions& options);

}  // namespace hanok
