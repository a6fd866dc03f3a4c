// RGB pictures -> rows of flattened patches, as transformers' Qwen3-VL processor makes them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace hanok {

/// What a model folder's preprocessor config says (both dialects), or the model's own numbers.
struct VisionPrep {
  int64_t patch = 16, temporal_patch = 2, merge = 2;
  int64_t min_pixels = 65536, max_pixels = 16777216;             // images: per picture
  int64_t video_min_pixels = 4096, video_max_pixels = 25165824;  // videos: frames x height x width
  double fps = 2;
  int64_t min_frames = 4, max_frames = 768;
  bool sample_frames = true;          // false: every frame of a video is used
  bool cap_pixels_per_frame = false;  // at most max_video_tokens merged tokens a frame, as qwen-vl-utils does
  int64_t max_video_tokens = 768;
  std::array<double, 3> mean{0.5, 0.5, 0.5}, std{0.5, 0.5, 0.5};
  double rescale = 1.0 / 255;
  int64_t factor() const { return patch * merge; }
};

/// From processor_config.json (nested), else preprocessor_config.json and video_preprocessor_config.json of `folder`. A
/// key that such a file leaves out has the default of the transformers class (Qwen2VLImageProcessor: patch 14, CLIP
/// mean and std; Qwen3VLVideoProcessor); what no file describes keeps the numbers above. errors: kData for a resample
/// mode, a processor class or a step that is not understood, and for image and video parts
///         that disagree on patches or normalisation
VisionPrep vision_prep_from_folder(const std::string& folder);

struct ImageSize {
  int64_t height = 0, width = 0;
  friend bool operator==(const ImageSize&, const ImageSize&) = default;
};

/// Multiples of `factor` near the given size with an area in [min_pixels, max_pixels].
/// errors: kData if the aspect ratio exceeds 200. source: transformers smart_resize (round half to even)
ImageSize smart_resize(ImageSize size, int64_t factor, int64_t min_pixels, int64_t max_pixels);
/// The video twin: the budget is over num_frames x height x width.
/// errors: kData also if there are fewer frames than temporal_patch.
/// source: transformers video_processing_qwen3_vl smart_resize
ImageSize smart_resize_video(
    int64_t num_frames, ImageSize size, int64_t temporal_patch, int64_t factor, int64_t min_pixels, int64_t max_pixels);

/// The sizes that `prep` asks for, its limits applied (of a video also cap_pixels_per_frame).
ImageSize prepared_size(ImageSize size, const VisionPrep& prep);
ImageSize prepared_video_size(int64_t num_frames, ImageSize size, const VisionPrep& prep);

/// rgb_CHW uint8 -> uint8, bicubic with antialias (ATen's kernel on uint8: the one that torchvision uses). The result
/// has the memory order of the input. May be called from several threads at once.
Tensor resize_bicubic(const Tensor& rgb_CHW, ImageSize size);

struct Patches {
  Tensor pixels_PC;             // f32 [t*h*w, 3 * temporal_patch * patch^2], merge-window order
  int64_t t = 0, h = 0, w = 0;  // in patches
};
/// frames uint8 [3, H, W] each, already resized, H and W multiples of factor(). One picture: t = 1 (repeated along
/// time). Missing frames of the last temporal patch are completed by repeating the last one.
/// Rescaled and normalised in the float arithmetic of transformers: bit-identical pixels.
/// errors: kShape for frames of other sizes
Patches patchify(const std::vector<Tensor>& frames_CHW, const VisionPrep& prep);

/// Frame numbers sampled from a video of `num_frames` at `video_fps`, and the timestamps (seconds) of its temporal
/// patches. transformers takes 24 frames a second where nobody knows.
struct VideoSampling {
  std::vector<int64_t> frames;
  std::vector<double> timestamps;  // one per temporal patch: mean of its first and last frame's time
};
/// errors: kData without frames or with a rate that is not positive
VideoSampling sample_video(int64_t num_frames, double video_fps, const VisionPrep& prep);

}  // namespace hanok
