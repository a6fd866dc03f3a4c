// Hugging Face folders <-> live parameters, through ParamSpec and NameMap.
#pragma once

#include <string>

#include "dataio/safetensors.h"
#include "model/vlm.h"

namespace hanok {

/// config.json of a model folder -> ModelConfig (path and tokenizer kept). errors: kConfig, kIo
void read_model_folder(ModelConfig& config);
/// Copies this rank's slices of every weight out of the folder, one tensor at a time (host memory: at most one tensor
/// above the model's own share). errors: kCheckpoint listing missing and unexpected names; kShape naming tensor, got
/// and expected shape
void load_weights(Vlm& model, const std::string& folder);

struct ExportOptions {
  std::string source_folder;  // side files (tokenizer, templates, configs) are copied from here; may equal model.path
  std::string tokenizer_folder;  // used for side files when source_folder is empty
  std::string chat_template;     // Jinja text for folders written without one
  int64_t max_shard_bytes = int64_t{5} << 30;
};
/// Writes FOLDER.tmp in the Hugging Face layout (same names, dtype and sharding rule, side files), reopens it, compares
/// every tensor bitwise with what was written, then renames over FOLDER. Called by every rank; ranks send their pieces
/// to rank 0 one tensor at a time. errors: kIo (an existing FOLDER stays), kCheckpoint if the comparison fails
void export_model(const Vlm& model, const std::string& folder, const ExportOptions& options);

}  // namespace hanok
