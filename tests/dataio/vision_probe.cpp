// Driven by tests/oracle/vision.py: reads one JSON job a line, writes for each a JSON line and its raw arrays.
#include <chrono>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/error.h"
#include "dataio/image.h"
#include "dataio/vision_prep.h"

using namespace hanok;
using nlohmann::json;

namespace {

std::vector<uint8_t> read_bytes(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

Tensor decode(const json& path, const ImageLimits& limits = {}) {
  return decode_image(read_bytes(path), limits);
}
ImageSize size_of(const Tensor& rgb_CHW) {
  return {rgb_CHW.size(1), rgb_CHW.size(2)};
}

void write(std::ostream& out, const json& head, const std::vector<Tensor>& arrays = {}) {
  out << head.dump() << '\n';
  for (const Tensor& array : arrays) {
    const Tensor plain = array.contiguous();
    out.write(static_cast<const char*>(plain.data_ptr()), static_cast<std::streamsize>(plain.nbytes()));
  }
}

void write_patches(std::ostream& out, const Tensor& frame, const Patches& patches) {
  write(out,
        {{"decoded", frame.sizes().vec()},
         {"grid", {patches.t, patches.h, patches.w}},
         {"columns", patches.pixels_PC.size(1)}},
        {frame, patches.pixels_PC});
}

Patches prepare(const Tensor& rgb_CHW, const VisionPrep& prep) {
  return patchify({resize_bicubic(rgb_CHW, prepared_size(size_of(rgb_CHW), prep))}, prep);
}

void run_video(const json& job, const VisionPrep& prep, std::ostream& out) {
  std::vector<Tensor> frames;
  for (const json& path : job["paths"]) frames.push_back(decode(path));
  const Tensor first = frames.at(0);
  const auto size = prepared_video_size(static_cast<int64_t>(frames.size()), size_of(first), prep);
  for (Tensor& frame : frames) frame = resize_bicubic(frame, size);
  write_patches(out, first, patchify(frames, prep));
}

/// Pictures a second of decode + resize + patchify, the pictures dealt to threads.
void run_bench(const json& job, const VisionPrep& prep, std::ostream& out) {
  std::vector<std::vector<uint8_t>> files;
  for (const json& path : job["paths"]) files.push_back(read_bytes(path));
  const int num_threads = job["threads"], repeats = job["repeats"];
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (int t = 0; t < num_threads; ++t) {
      threads.emplace_back([&, t] {
        for (size_t k = t; k < files.size(); k += num_threads) prepare(decode_image(files[k], {}), prep);
      });
    }
    for (std::thread& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(files.size()) / seconds.count());
  }
  write(out, {{"images_per_s", best}});
}

void run(const json& job, std::ostream& out) {
  const std::string kind = job["kind"];
  if (kind == "decode") {
    ImageLimits limits;
    limits.max_pixels = job.value("max_pixels", limits.max_pixels);
    const Tensor rgb = decode(job["path"], limits);
    const ImageInfo info = inspect_image(read_bytes(job["path"]), limits);
    return write(out, {{"decoded", rgb.sizes().vec()}, {"inspected", {info.height, info.width}}}, {rgb});
  }
  if (kind == "sizes") {
    json sizes = json::array();
    for (const json& s : job["cases"]) {
      const ImageSize size = s.size() == 5 ? smart_resize({s[0], s[1]}, s[2], s[3], s[4])
                                           : smart_resize_video(s[0], {s[1], s[2]}, s[3], s[4], s[5], s[6]);
      sizes.push_back({size.height, size.width});
    }
    return write(out, {{"sizes", sizes}});
  }
  const VisionPrep prep = vision_prep_from_folder(job["folder"]);
  if (kind == "image") {
    const Tensor rgb = decode(job["path"]);
    write_patches(out, rgb, prepare(rgb, prep));
  } else if (kind == "video") {
    run_video(job, prep, out);
  } else if (kind == "sample") {
    const VideoSampling sampling = sample_video(job["num_frames"], job["fps"], prep);
    write(out, {{"frames", sampling.frames}, {"timestamps", sampling.timestamps}});
  } else if (kind == "bench") {
    run_bench(job, prep, out);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::ifstream jobs(argv[1]);
  std::ofstream out(argv[2], std::ios::binary);
  for (std::string line; std::getline(jobs, line);) {
    try {
      run(json::parse(line), out);
    } catch (const Error& error) {
      write(out, {{"error", error.what()}});
    }
  }
  return out.flush() ? 0 : 1;
}
