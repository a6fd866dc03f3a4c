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
  std::array<double, 3> mean{0.5, 0.5, 0.5}, std{0.5, 0.5, 0.5};
  double rescale = 1.0 / 255;
  int64_t factor() const { return patch * merge; }
};

/// From preprocessor_config.json / processor_config.json / video_preprocessor_config.json of `folder`; fields absent
/// keep the defaults above. errors: kData for a resample mode or a processor class that is not understood.
VisionPrep vision_prep_from_folder(const std::string& folder);

struct ImageSize {
  int64_t height = 0, width = 0;
  friend bool operator==(const ImageSize&, const ImageSize&) = default;
};

/// Multiples of `factor` near the given size with an area in [min_pixels, max_pixels].
/// errors: kData if the aspect ratio exceeds 200. source: transformers smart_resize (round half to even)
ImageSize smart_resize(ImageSize size, int64_t factor, int64_t min_pixels, int64_t max_pixels);
/// The video twin: the budget is over num_frames x height x width. source: transformers video_processing_qwen3_vl
/// smart_resize
ImageSize smart_resize_video(
    int64_t num_frames, ImageSize size, int64_t temporal_patch, int64_t factor, int64_t min_pixels, int64_t max_pixels);

/// rgb_CHW uint8 -> uint8, bicubic with antialias (ATen's kernel on uint8: the one that torchvision uses).
Tensor resize_bicubic(const Tensor& rgb_CHW, ImageSize size);

struct Patches {
  Tensor pixels_PC;             // f32 [t*h*w, 3 * temporal_patch * patch^2], merge-window order
  int64_t t = 0, h = 0, w = 0;  // in patches
};
/// frames uint8 [3, H, W] each, already resized, H and W multiples of factor(). One picture: t = 1 (repeated along
/// time). An odd number of video frames is completed by repeating the last one.
Patches patchify(const std::vector<Tensor>& frames_CHW, const VisionPrep& prep);

/// Frame numbers sampled from a video of `num_frames` at `video_fps`, and the timestamps (seconds) of its temporal
/// patches.
struct VideoSampling {
  std::vector<int64_t> frames;
  std::vector<double> timestamps;  // one per temporal patch: mean of its first and last frame's time
};
VideoSampling sample_video(int64_t num_frames, double video_fps, const VisionPrep& prep);

}  // namespace hanok
