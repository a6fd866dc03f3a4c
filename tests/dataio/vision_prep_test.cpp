#include "dataio/vision_prep.h"

#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "tests/dataio/temp_folder.h"

namespace hanok {
namespace {

std::string shown(ImageSize size) {
  return concat(size.height, "x", size.width);
}

template <class F>
std::string message_of(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

Tensor picture(int64_t height, int64_t width, int64_t seed = 0) {
  const Tensor levels = at::arange(3 * height * width, at::kLong) * (seed + 37) + seed * 11;
  return levels.remainder(251).to(at::kByte).view({3, height, width});
}

// Expected sizes: transformers 5.17.
TEST(SmartResize, RoundsHalvesToEvenAndKeepsTheBudget) {
  const int64_t low = 65536, high = 16777216;
  EXPECT_EQ(shown(smart_resize({427, 640}, 32, low, high)), "416x640");
  EXPECT_EQ(shown(smart_resize({48, 48}, 32, 1024, high)), "64x64");  // 1.5 -> 2
  EXPECT_EQ(shown(smart_resize({80, 80}, 32, 1024, high)), "64x64");  // 2.5 -> 2
  EXPECT_EQ(shown(smart_resize({112, 16}, 32, 256, high)), "64x32");  // 0.5 -> 0: too small, grown
  EXPECT_EQ(shown(smart_resize({8, 8}, 32, low, high)), "256x256");
  EXPECT_EQ(shown(smart_resize({5000, 5000}, 32, low, 1048576)), "1024x1024");
  EXPECT_EQ(shown(smart_resize({100, 20000}, 28, 3136, 100352)), "28x4480");  // one side at its least
  EXPECT_EQ(shown(smart_resize({1, 200}, 32, low, high)), "32x3648");
  expect_contains(message_of([] { smart_resize({1, 201}, 32, 65536, 1 << 24); }), "aspect ratio of 201");
}

TEST(SmartResize, CountsAllFramesOfAVideo) {
  EXPECT_EQ(shown(smart_resize_video(4, {240, 320}, 2, 32, 4096, 25165824)), "256x320");
  EXPECT_EQ(shown(smart_resize_video(5, {10, 300}, 2, 32, 4096, 25165824)), "32x960");
  EXPECT_EQ(shown(smart_resize_video(3, {720, 1280}, 2, 32, 4096, 786432)), "384x672");
  EXPECT_EQ(shown(smart_resize_video(2, {8, 8}, 2, 32, 131072, 786432)), "256x256");
  expect_contains(message_of([] { smart_resize_video(1, {64, 64}, 2, 32, 4096, 1 << 20); }), "got 1 frames");
}

TEST(SmartResize, CapsPixelsOfAFrameWhereTheFolderSaysSo) {
  VisionPrep prep;
  EXPECT_EQ(shown(prepared_video_size(8, {1080, 1920}, prep)), "1088x1920");
  prep.cap_pixels_per_frame = true;  // 768 tokens of 32 x 32 pixels
  EXPECT_EQ(shown(prepared_video_size(8, {1080, 1920}, prep)), "640x1152");
}

TEST(Resize, IsAtensKernelInAnyMemoryOrder) {
  const Tensor planes = picture(61, 47);
  const Tensor interleaved = planes.permute({1, 2, 0}).contiguous().permute({2, 0, 1});
  const Tensor expected = at::_upsample_bicubic2d_aa(planes.unsqueeze(0), {96, 32}, false).squeeze(0);
  EXPECT_TRUE(resize_bicubic(planes, {96, 32}).equal(expected));
  const Tensor resized = resize_bicubic(interleaved, {96, 32});
  EXPECT_TRUE(resized.equal(expected));
  EXPECT_EQ(resized.stride(0), 1) << "planes cost a copy";
  EXPECT_TRUE(resize_bicubic(planes, {61, 47}).is_same(planes));
}

/// As transformers writes it: reshape and permute, in f32 with the fused rescale.
Tensor reference_patches(const Tensor& frames_TCHW, const VisionPrep& prep) {
  const int64_t T = frames_TCHW.size(0), p = prep.patch, m = prep.merge, time = prep.temporal_patch;
  const int64_t h = frames_TCHW.size(2) / p, w = frames_TCHW.size(3) / p;
  const auto fused = [&](const std::array<double, 3>& v) {
    return (at::tensor(at::ArrayRef<double>(v), at::kFloat) * (1.0 / prep.rescale)).view({-1, 1, 1});
  };
  const Tensor levels = frames_TCHW.to(at::kFloat).sub(fused(prep.mean)).div(fused(prep.std));
  return levels.view({T / time, time, 3, h / m, m, p, w / m, m, p})
      .permute({0, 3, 6, 4, 7, 2, 1, 5, 8})
      .reshape({T / time * h * w, 3 * time * p * p});
}

TEST(Patchify, HasTheOrderAndTheBitsOfTransformers) {
  for (const auto& [patch, merge, temporal] : {std::array<int64_t, 3>{16, 2, 2}, {14, 1, 2}, {4, 3, 1}, {2, 2, 3}}) {
    VisionPrep prep;
    prep.patch = patch;
    prep.merge = merge;
    prep.temporal_patch = temporal;
    prep.mean = {0.48145466, 0.4578275, 0.40821073};
    prep.std = {0.26862954, 0.26130258, 0.27577711};
    const int64_t height = 2 * prep.factor(), width = 3 * prep.factor();
    std::vector<Tensor> frames;
    for (int64_t i = 0; i < 2 * temporal; ++i) frames.push_back(picture(height, width, i));
    frames[0] = frames[0].permute({1, 2, 0}).contiguous().permute({2, 0, 1});
    const Patches patches = patchify(frames, prep);
    EXPECT_EQ(concat(patches.t, " ", patches.h, " ", patches.w), concat(2, " ", 2 * merge, " ", 3 * merge));
    EXPECT_TRUE(patches.pixels_PC.equal(reference_patches(at::stack(frames), prep)));
  }
}

TEST(Patchify, RepeatsAPictureAndTheLastFrameAlongTime) {
  const VisionPrep prep;
  const Tensor a = picture(32, 64, 1), b = picture(32, 64, 2), c = picture(32, 64, 3);
  EXPECT_TRUE(patchify({a}, prep).pixels_PC.equal(reference_patches(at::stack({a, a}), prep)));
  const Patches odd = patchify({a, b, c}, prep);
  EXPECT_EQ(odd.t, 2);
  EXPECT_TRUE(odd.pixels_PC.equal(reference_patches(at::stack({a, b, c, c}), prep)));
  expect_contains(message_of([&] { patchify({a, picture(32, 32)}, prep); }), "got a frame of [3, 32, 32]");
  expect_contains(message_of([&] { patchify({picture(32, 40)}, prep); }), "with sides that 32 divides");
}

TEST(Vision, ThreadsPrepareTheSame) {
  const VisionPrep prep;
  const Tensor rgb = picture(200, 300);
  const auto prepare = [&] { return patchify({resize_bicubic(rgb, prepared_size({200, 300}, prep))}, prep).pixels_PC; };
  const Tensor expected = prepare();
  std::atomic<int> num_different = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) num_different += !prepare().equal(expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_different, 0);
}

TEST(SampleVideo, TakesTheFramesAndTimesOfTransformers) {
  const VisionPrep prep;
  const VideoSampling s = sample_video(100, 25.0, prep);
  EXPECT_EQ(s.frames, (std::vector<int64_t>{0, 14, 28, 42, 57, 71, 85, 99}));
  EXPECT_EQ(s.timestamps, (std::vector<double>{0.28, 1.4, 2.5599999999999996, 3.6799999999999997}));
  EXPECT_EQ(sample_video(7, 24.0, prep).frames, (std::vector<int64_t>{0, 2, 4, 6}));
  EXPECT_EQ(sample_video(3, 30.0, prep).timestamps, (std::vector<double>{0.016666666666666666, 0.06666666666666667}));
  EXPECT_EQ(sample_video(1, 24.0, prep).frames, std::vector<int64_t>{0});
  VisionPrep all = prep;
  all.sample_frames = false;
  EXPECT_EQ(sample_video(100, 25.0, all).frames.size(), 100);
  EXPECT_THROW(sample_video(0, 25.0, prep), Error);
}

struct Folder {
  TempFolder temp;
  std::string path() const { return temp.path(); }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path() + "/" + name) << text; }
  std::string refusal() const {
    return message_of([&] { vision_prep_from_folder(path()); });
  }
};

TEST(VisionConfig, ReadsTheFilesOfPublishedCheckpoints) {
  Folder folder;
  EXPECT_EQ(vision_prep_from_folder(folder.path()).patch, 16) << "no file: the model's own numbers";
  EXPECT_EQ(vision_prep_from_folder(folder.path()).max_pixels, 16777216);
  folder.write("preprocessor_config.json",
               R"({"size": {"longest_edge": 2000000, "shortest_edge": 4000}, "patch_size": 16, "temporal_patch_size": 2,
                   "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 3,
                   "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"})");
  folder.write("video_preprocessor_config.json",
               R"({"size": {"longest_edge": 3000000, "shortest_edge": 5000}, "patch_size": 16, "fps": 4,
                   "num_frames": null, "max_frames": 100, "video_processor_type": "Qwen3VLVideoProcessor"})");
  const VisionPrep prep = vision_prep_from_folder(folder.path());
  EXPECT_EQ(concat(prep.min_pixels, " ", prep.max_pixels), "4000 2000000");
  EXPECT_EQ(concat(prep.video_min_pixels, " ", prep.video_max_pixels), "5000 3000000");
  EXPECT_EQ(concat(prep.fps, " ", prep.min_frames, " ", prep.max_frames), "4 4 100");
}

TEST(VisionConfig, NestedFileComesFirstAndMinPixelsBeforeSize) {
  Folder folder;
  folder.write("preprocessor_config.json", R"({"min_pixels": 1, "max_pixels": 2, "patch_size": 14})");
  folder.write("processor_config.json",
               R"({"image_processor": {"size": {"longest_edge": 70000, "shortest_edge": 600}, "max_pixels": 80000,
                                       "patch_size": 16, "image_mean": [0.5, 0.5, 0.5], "image_std": 0.5,
                                       "image_processor_type": "Qwen2VLImageProcessor"},
                   "video_processor": {"cap_pixels_per_frame": true, "do_sample_frames": false}})");
  const VisionPrep prep = vision_prep_from_folder(folder.path());
  EXPECT_EQ(concat(prep.patch, " ", prep.min_pixels, " ", prep.max_pixels), "16 600 80000");
  EXPECT_TRUE(prep.cap_pixels_per_frame);
  EXPECT_FALSE(prep.sample_frames);
  EXPECT_EQ(prep.video_min_pixels, 131072) << "the class's default";
}

TEST(VisionConfig, WhatIsNotUnderstoodIsRefusedByName) {
  Folder folder;
  const auto refusal = [&](const std::string& text) {
    folder.write("preprocessor_config.json", text);
    return folder.refusal();
  };
  const std::string normal = R"("patch_size": 16, "image_mean": 0.5, "image_std": 0.5)";
  EXPECT_EQ(refusal("{" + normal + "}"), "no error");
  expect_contains(refusal("{" + normal + R"(, "resample": 2})"), "resample = 2, expected 3 (bicubic)");
  expect_contains(refusal("{" + normal + R"(, "image_processor_type": "CLIPImageProcessor"})"), "CLIPImageProcessor");
  expect_contains(refusal("{" + normal + R"(, "do_resize": false})"), "do_resize = false, expected true");
  expect_contains(refusal("{" + normal + R"(, "size": {"height": 3, "width": 3}})"), "{shortest_edge, longest_edge}");
  expect_contains(refusal(R"({"patch_size": 0})"), "patch_size = 0, expected an integer from 1 to 1024");
  expect_contains(refusal(R"({"patch_size": 3298534880256})"), "expected an integer from 1 to 1024");
  expect_contains(refusal(R"({"max_pixels": 18446744073709551615})"), "expected an integer from 1 to 1099511627776");
  expect_contains(refusal(R"({"patch_size": )" + std::string(1 << 20, '[')), "more than 32 levels");
  expect_contains(refusal(R"({"patch_size": 16, "image_std": [1, 0, 1]})"), "image_std");
  expect_contains(refusal("[1]"), "no JSON object");
  expect_contains(refusal("{"), "got an error at byte 2");
  folder.write("video_preprocessor_config.json", R"({"patch_size": 14})");
  expect_contains(refusal("{" + normal + "}"), "make both files say the same");
}

}  // namespace
}  // namespace hanok
