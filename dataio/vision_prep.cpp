#include "dataio/vision_prep.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace hanok {
namespace {

constexpr double kMaxAspectRatio = 200;

void require_aspect_ratio(ImageSize size) {
  const auto [low, high] = std::minmax(size.height, size.width);
  const double ratio = static_cast<double>(high) / static_cast<double>(low);
  HANOK_REQUIRE(ratio <= kMaxAspectRatio, kData)
      << "image: got " << size.width << " x " << size.height << " pixels, an aspect ratio of " << ratio
      << ", expected at most " << kMaxAspectRatio << "; crop the picture";
}

/// Python's round(length / factor) * factor: halves go to the even neighbour.
int64_t nearest_multiple(int64_t length, int64_t factor) {
  return static_cast<int64_t>(std::nearbyint(static_cast<double>(length) / static_cast<double>(factor))) * factor;
}
int64_t shrunk(int64_t length, double beta, int64_t factor) {
  const double count = std::floor(static_cast<double>(length) / beta / static_cast<double>(factor));
  return std::max(factor, static_cast<int64_t>(count) * factor);
}
int64_t grown(int64_t length, double beta, int64_t factor) {
  return static_cast<int64_t>(std::ceil(static_cast<double>(length) * beta / static_cast<double>(factor))) * factor;
}

/// `frames` of the rounded size must fit the budget; how far the size is scaled depends on `exact_frames`.
ImageSize fitted(
    ImageSize size, int64_t frames, int64_t exact_frames, int64_t factor, int64_t min_pixels, int64_t max_pixels) {
  require_aspect_ratio(size);
  const ImageSize rounded{nearest_multiple(size.height, factor), nearest_multiple(size.width, factor)};
  const int64_t area = frames * rounded.height * rounded.width;
  const auto pixels = static_cast<double>(exact_frames * size.height * size.width);
  if (area > max_pixels) {
    const double beta = std::sqrt(pixels / static_cast<double>(max_pixels));
    return {shrunk(size.height, beta, factor), shrunk(size.width, beta, factor)};
  }
  if (area < min_pixels) {
    const double beta = std::sqrt(static_cast<double>(min_pixels) / pixels);
    return {grown(size.height, beta, factor), grown(size.width, beta, factor)};
  }
  return rounded;
}

/// uint8 -> f32, in the order of operations of transformers: mean and std are divided by the rescale factor first.
std::array<std::array<float, 256>, 3> normalised_levels(const VisionPrep& prep) {
  std::array<std::array<float, 256>, 3> levels;
  const auto inverse = static_cast<float>(1.0 / prep.rescale);
  for (int c = 0; c < 3; ++c) {
    const float mean = static_cast<float>(prep.mean[c]) * inverse, std = static_cast<float>(prep.std[c]) * inverse;
    for (int i = 0; i < 256; ++i) levels[c][i] = (static_cast<float>(i) - mean) / std;
  }
  return levels;
}

}  // namespace

ImageSize smart_resize(ImageSize size, int64_t factor, int64_t min_pixels, int64_t max_pixels) {
  return fitted(size, 1, 1, factor, min_pixels, max_pixels);
}

ImageSize smart_resize_video(int64_t num_frames,
                             ImageSize size,
                             int64_t temporal_patch,
                             int64_t factor,
                             int64_t min_pixels,
                             int64_t max_pixels) {
  HANOK_REQUIRE(num_frames >= temporal_patch, kData)
      << "video: got " << num_frames << " frames, expected at least " << temporal_patch << "; give it as a picture";
  if (size.height < factor || size.width < factor) {
    const auto f = static_cast<double>(factor);
    const double scale = std::max(f / static_cast<double>(size.height), f / static_cast<double>(size.width));
    size = {static_cast<int64_t>(static_cast<double>(size.height) * scale),
            static_cast<int64_t>(static_cast<double>(size.width) * scale)};
  }
  return fitted(size, nearest_multiple(num_frames, temporal_patch), num_frames, factor, min_pixels, max_pixels);
}

ImageSize prepared_size(ImageSize size, const VisionPrep& prep) {
  return smart_resize(size, prep.factor(), prep.min_pixels, prep.max_pixels);
}

ImageSize prepared_video_size(int64_t num_frames, ImageSize size, const VisionPrep& prep) {
  int64_t max_pixels = prep.video_max_pixels;
  if (prep.cap_pixels_per_frame && num_frames > 0) {
    const int64_t cap = std::min(prep.max_video_tokens * prep.factor() * prep.factor(), max_pixels / num_frames);
    const auto floor = static_cast<int64_t>(static_cast<double>(prep.video_min_pixels) * 1.05);
    max_pixels = std::max(cap, floor) * num_frames;
  }
  return smart_resize_video(num_frames, size, prep.temporal_patch, prep.factor(), prep.video_min_pixels, max_pixels);
}

Tensor resize_bicubic(const Tensor& rgb_CHW, ImageSize size) {
  if (rgb_CHW.size(1) == size.height && rgb_CHW.size(2) == size.width) return rgb_CHW;
  const int64_t h = rgb_CHW.size(1), w = rgb_CHW.size(2);
  Tensor in = rgb_CHW.unsqueeze(0);
  // ATen guesses the memory order of one picture from the stride of its batch dimension, and would copy it to planes.
  if (rgb_CHW.strides() == at::IntArrayRef({1, 3 * w, 3})) in = in.as_strided({1, 3, h, w}, {3 * h * w, 1, 3 * w, 3});
  return at::_upsample_bicubic2d_aa(in, {size.height, size.width}, /*align_corners=*/false).squeeze(0);
}

Patches patchify(const std::vector<Tensor>& frames_CHW, const VisionPrep& prep) {
  HANOK_REQUIRE(!frames_CHW.empty(), kShape) << "patchify: got no frames, expected at least one";
  const int64_t height = frames_CHW[0].size(-2), width = frames_CHW[0].size(-1);
  for (const Tensor& frame : frames_CHW) {
    HANOK_REQUIRE(frame.dim() == 3 && frame.size(0) == 3 && frame.size(1) == height && frame.size(2) == width &&
                      height % prep.factor() == 0 && width % prep.factor() == 0 && frame.scalar_type() == at::kByte,
                  kShape)
        << "patchify: got a frame of " << frame.sizes() << ", expected uint8 [3, " << height << ", " << width
        << "] with sides that " << prep.factor() << " divides";
  }
  const int64_t p = prep.patch, m = prep.merge, num_times = prep.temporal_patch, plane = p * p;
  const auto num_frames = static_cast<int64_t>(frames_CHW.size());
  Patches out{{}, (num_frames + num_times - 1) / num_times, height / p, width / p};
  out.pixels_PC = at::empty({out.t * out.h * out.w, 3 * num_times * plane}, at::kFloat);
  const auto levels = normalised_levels(prep);
  float* to = out.pixels_PC.data_ptr<float>();
  // Rows are patches in the order (t, h / m, w / m, m, m); within a row lie (channel, time, y, x).
  for (int64_t row = 0; row < out.t * out.h * out.w; ++row) {
    const int64_t w_in = row % m, h_in = row / m % m, window = row / (m * m);
    const int64_t w = window % (out.w / m) * m + w_in, h = window / (out.w / m) % (out.h / m) * m + h_in;
    const int64_t t = row / (out.h * out.w);
    for (int64_t c = 0; c < 3; ++c) {
      for (int64_t time = 0; time < num_times; ++time, to += plane) {
        const int64_t frame_number = t * num_times + time;
        if (time > 0 && frame_number >= num_frames) {
          std::copy(to - plane, to, to);  // the last frame again
          continue;
        }
        const Tensor& frame = frames_CHW[frame_number];
        const int64_t step = frame.stride(2);
        const uint8_t* from = frame.data_ptr<uint8_t>() + c * frame.stride(0) + h * p * frame.stride(1) + w * p * step;
        for (int64_t y = 0; y < p; ++y, from += frame.stride(1)) {
          for (int64_t x = 0; x < p; ++x) to[y * p + x] = levels[c][from[x * step]];
        }
      }
    }
  }
  return out;
}

VideoSampling sample_video(int64_t num_frames, double video_fps, const VisionPrep& prep) {
  HANOK_REQUIRE(num_frames > 0 && video_fps > 0, kData)
      << "video: got " << num_frames << " frames at " << video_fps << " frames a second, expected both above zero";
  int64_t n = num_frames;
  if (prep.sample_frames) {
    n = static_cast<int64_t>(static_cast<double>(num_frames) / video_fps * prep.fps);
    n = std::min({std::max(n, prep.min_frames), prep.max_frames, num_frames});
  }
  VideoSampling out;
  // numpy's linspace(0, num_frames - 1, n).round(): its order of operations, its exact last point.
  const double step = n > 1 ? static_cast<double>(num_frames - 1) / static_cast<double>(n - 1) : 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool is_end = i > 0 && i == n - 1;
    out.frames.push_back(is_end ? num_frames - 1 : std::llrint(static_cast<double>(i) * step));
  }
  for (size_t i = 0; i < out.frames.size(); i += prep.temporal_patch) {
    const size_t last = std::min(i + prep.temporal_patch, out.frames.size()) - 1;
    const double from = static_cast<double>(out.frames[i]) / video_fps;
    const double to = static_cast<double>(out.frames[last]) / video_fps;
    out.timestamps.push_back((from + to) / 2);
  }
  return out;
}

}  // namespace hanok
