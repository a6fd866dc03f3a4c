// Hugging Face folders <-> live parameters, through ParamSpec and NameMap.
#pragma once

#include <optional>
#include <string>

#include "dataio/safetensors.h"
#include "dataio/vision_prep.h"
#include "model/vlm.h"

namespace hanok {

/// config.json of a model folder -> ModelConfig (path and tokenizer kept). errors: kConfig, kIo
void read_model_folder(ModelConfig& config);
/// Copies this rank's slices of every weight out of the folder, one tensor at a time (host memory: at most one tensor
/// above the model's own share). A head that shares the embedding may be stored too, if it is equal. errors:
/// kCheckpoint listing missing and unexpected names, or naming a tensor that is no plain floating-point one; kShape
/// naming tensor, got and expected shape
void load_weights(Vlm& model, const std::string& folder);
/// Whether every value is a number. Waits for the device.
bool has_finite_values(const Tensor& value);

struct ExportOptions {
  /// Folder that the model came from: its side files are copied as they are, its dtypes and tensors unknown to the
  /// model are kept. Never the target. Empty: trained from scratch, side files are made.
  std::string source_folder;
  /// Tokenizer that the model was trained with; its files take the place of the source's. Empty: the source's stay.
  std::string tokenizer_folder;
  /// Jinja text of the template that the model was trained with; a folder's own stays if it renders the same.
  std::string chat_template;
  VisionPrep vision;  // picture rules written when source_folder is empty
  /// Of the model's tensors. None: as in source_folder, without one the model's.
  std::optional<at::ScalarType> dtype;
  int64_t max_shard_bytes = 5'000'000'000;
};
/// Writes FOLDER.tmp/model in the Hugging Face layout (same names, dtype and sharding rule, side files), reopens it,
/// compares every tensor bitwise with the model, then renames it over FOLDER and removes FOLDER.tmp. Called by every
/// rank; ranks send their pieces to world rank 0 one tensor at a time. errors, on every rank: as
/// require_export_target(), kIo (an existing FOLDER stays), kCheckpoint if the comparison fails
void export_model(const Vlm& model, const std::string& folder, const ExportOptions& options);
/// An export replaces an empty folder, or one that an export could have written: weights, config.json and nothing that
/// is not of an export's names. FOLDER.tmp must be free, or left by an export that was killed. Reads names only.
/// errors: kIo naming what else is there; kConfig if it is the folder that model or tokenizer come from
void require_export_target(const std::string& folder, const ExportOptions& options);

/// Host only: an allocation that is too large succeeds there, and the kernel kills the process when it is written to.
/// errors: kDevice if this rank's weights alone are more than the machine has, or more than its container may use
void require_room_for_weights(const ModelConfig& config,
                              const Groups& groups,
                              at::ScalarType dtype,
                              at::Device device,
                              const ParallelConfig& layout);

}  // namespace hanok
