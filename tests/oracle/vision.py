"""Compares dataio's decoding, resizing, patches and video sampling with transformers' Qwen3-VL processors.

usage: vision.py VISION_PROBE [--seed N] [--keep DIR]
Pixels of PNG and lossless WebP must be bit-identical, those of JPEG within one level, grids identical. What Pillow
refuses as truncated must be refused. Speed is printed, not judged.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen3VLVideoProcessor
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

import vision_files as files

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
QWEN3_VL = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class Oracle:
    def __init__(self, probe, folder, seed):
        self.probe, self.folder = probe, pathlib.Path(folder)
        self.rng = random.Random(seed)
        self.failures = []

    def run(self, jobs):
        """Results of the probe, in order: the JSON line of each job with its arrays."""
        (self.folder / "jobs").write_text("".join(json.dumps(job) + "\n" for job in jobs))
        subprocess.run([self.probe, self.folder / "jobs", self.folder / "out"], check=True)
        results = []
        with open(self.folder / "out", "rb") as stream:
            for _ in jobs:
                head = json.loads(stream.readline())
                if "decoded" in head:
                    shape = head["decoded"]
                    head["rgb"] = np.frombuffer(stream.read(int(np.prod(shape))), np.uint8).reshape(shape)
                if "grid" in head:
                    shape = (int(np.prod(head["grid"])), head["columns"])
                    head["pixels"] = np.frombuffer(stream.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
                results.append(head)
        return results

    def expect(self, holds, what):
        if not holds:
            self.failures.append(what)
            print("  DIFFERS:", what)

    def model_folder(self, name, image, video, dialect):
        """A folder with the processors' files: as transformers 5 saves them, or as published checkpoints carry them."""
        folder = self.folder / name
        folder.mkdir()
        if dialect == "nested":
            config = {"image_processor": image.to_dict(), "video_processor": video.to_dict()}
            (folder / "processor_config.json").write_text(json.dumps(config))
        else:
            config = image.to_dict()
            config["image_processor_type"] += "Fast"
            if dialect == "min_pixels":
                size = config.pop("size")
                config |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
            (folder / "preprocessor_config.json").write_text(json.dumps(config))
            (folder / "video_preprocessor_config.json").write_text(json.dumps(video.to_dict()))
        return str(folder)


def levels_apart(a, b, std):
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max() * 255 * min(std)) if a.size else 0.0


def check_formats(oracle):
    """Every kind of file: the decoded picture equals load_image's."""
    cases = files.every_format(oracle.folder, oracle.rng)
    worst = {}
    for case, got in zip(cases, oracle.run([{"kind": "decode", "path": str(c.path)} for c in cases])):
        if "error" in got:
            oracle.expect(False, f"{case.name}: {got['error']}")
            continue
        want = np.asarray(load_image(str(case.path))).transpose(2, 0, 1)
        oracle.expect(got["inspected"] == got["decoded"][1:], f"{case.name}: inspected {got['inspected']}")
        oracle.expect(list(want.shape) == got["decoded"], f"{case.name}: {got['decoded']}, expected {want.shape}")
        if list(want.shape) != got["decoded"]:
            continue
        apart = int(np.abs(want.astype(int) - got["rgb"].astype(int)).max())
        kind = case.path.suffix[1:] + ("" if case.exact else ", lossy")
        worst[kind] = max(worst.get(kind, 0), apart)
        oracle.expect(apart <= (0 if case.exact else 1), f"{case.name}: {apart} levels apart")
    print(f"formats: {len(cases)} files, levels apart at most {worst}")


def check_images(oracle):
    """Random pictures through the whole image processor."""
    jobs, wants, apart_at_most = [], [], {True: 0.0, False: 0.0}
    for number in range(90):
        patch, merge = oracle.rng.choice([(16, 2), (16, 2), (14, 2), (16, 1), (14, 1)])
        low = oracle.rng.choice([56 * 56, 65536, 256, 200000])
        high = low * oracle.rng.choice([4, 16, 256])
        normal = QWEN3_VL | {"patch_size": patch, "merge_size": merge}
        if number % 5 == 4:  # CLIP's mean and std
            del normal["image_mean"], normal["image_std"]
        processor = Qwen2VLImageProcessor(size={"shortest_edge": low, "longest_edge": high}, **normal)
        video = Qwen3VLVideoProcessor(patch_size=patch, merge_size=merge,
                                      image_mean=processor.image_mean, image_std=processor.image_std)
        folder = oracle.model_folder(f"m{number}", processor, video,
                                     oracle.rng.choice(["nested", "legacy", "min_pixels"]))
        case = files.random_picture(oracle.folder, f"r{number}", oracle.rng)
        jobs.append({"kind": "image", "path": str(case.path), "folder": folder})
        wants.append((case, processor))
    prep = Qwen2VLImageProcessor(size={"shortest_edge": 65536, "longest_edge": 16777216}, **QWEN3_VL)
    folder = oracle.model_folder("photos", prep, Qwen3VLVideoProcessor(), "legacy")
    for path in files.photos(oracle.folder):
        jobs.append({"kind": "image", "path": str(path), "folder": folder})
        wants.append((files.Case(path.name, path, path.suffix != ".jpg"), prep))
    refused = 0
    for (case, processor), got in zip(wants, oracle.run(jobs)):
        try:
            want = processor(load_image(str(case.path)), return_tensors="pt")
        except ValueError as error:  # aspect ratio
            refused += 1
            oracle.expect("aspect ratio" in got.get("error", ""), f"{case.name}: got {got}, expected {error}")
            continue
        if "error" in got:
            oracle.expect(False, f"{case.name}: {got['error']}")
            continue
        grid, pixels = want["image_grid_thw"].tolist()[0], want["pixel_values"].numpy()
        oracle.expect(grid == got["grid"], f"{case.name}: grid {got['grid']}, expected {grid}")
        if grid != got["grid"]:
            continue
        apart = levels_apart(pixels, got["pixels"], processor.image_std)
        apart_at_most[case.exact] = max(apart_at_most[case.exact], apart)
        if case.exact:
            oracle.expect(np.array_equal(pixels.view(np.uint32), got["pixels"].view(np.uint32)),
                          f"{case.name}: pixels differ by {apart} levels, expected bit-equal")
        else:
            oracle.expect(apart < 1.01, f"{case.name}: pixels differ by {apart} levels")
    print(f"images: {len(jobs)} ({refused} refused for their aspect ratio by both); PNG and lossless WebP bit-equal"
          f" unless said, JPEG at most {apart_at_most[False]:.3f} levels apart")


def check_videos(oracle):
    jobs, wants = [], []
    for number in range(16):
        cap = number % 3 == 2
        size = {"shortest_edge": oracle.rng.choice([4096, 131072]), "longest_edge": oracle.rng.choice([786432, 3000000])}
        video = Qwen3VLVideoProcessor(size=size, cap_pixels_per_frame=cap, do_sample_frames=False)
        image = Qwen2VLImageProcessor(**QWEN3_VL)
        folder = oracle.model_folder(f"v{number}", image, video, oracle.rng.choice(["nested", "legacy"]))
        height, width = oracle.rng.randrange(5, 500), oracle.rng.randrange(5, 500)
        paths = [files.noise_png(oracle.folder / f"v{number}_{i}.png", height, width, oracle.rng)
                 for i in range(oracle.rng.randrange(2, 10))]
        jobs.append({"kind": "video", "paths": [str(p) for p in paths], "folder": folder})
        wants.append((video, paths))
    for number, ((video, paths), got) in enumerate(zip(wants, oracle.run(jobs))):
        frames = torch.stack([torch.from_numpy(np.array(load_image(str(p)))).permute(2, 0, 1) for p in paths])
        want = video(frames, return_tensors="pt", do_sample_frames=False)
        grid, pixels = want["video_grid_thw"].tolist()[0], want["pixel_values_videos"].numpy()
        same = got.get("grid") == grid and np.array_equal(pixels.view(np.uint32), got["pixels"].view(np.uint32))
        oracle.expect(same, f"video {number}: {len(paths)} frames, grid {got.get('grid', got)}, expected {grid}")
    print(f"videos: {len(jobs)}, grids and pixels bit-equal unless said")


def check_sampling(oracle):
    jobs, wants = [], []
    for number in range(40):
        video = Qwen3VLVideoProcessor(fps=oracle.rng.choice([0.5, 1, 2, 2.5, 4]), min_frames=oracle.rng.choice([2, 4, 5]),
                                      max_frames=oracle.rng.choice([8, 64, 768]),
                                      temporal_patch_size=oracle.rng.choice([1, 2, 2, 3]))
        image = Qwen2VLImageProcessor(temporal_patch_size=video.temporal_patch_size, **QWEN3_VL)
        folder = oracle.model_folder(f"s{number}", image, video, oracle.rng.choice(["nested", "legacy"]))
        for _ in range(30):
            frames = oracle.rng.choice([oracle.rng.randrange(1, 20), oracle.rng.randrange(1, 5000)])
            fps = oracle.rng.choice([24.0, 25.0, 29.97, 30000 / 1001, 60.0, 0.7, oracle.rng.uniform(0.1, 120)])
            indices = video.sample_frames(VideoMetadata(total_num_frames=frames, fps=fps), fps=video.fps)
            times = Qwen3VLProcessor._calculate_timestamps(None, indices, fps, video.temporal_patch_size)
            jobs.append({"kind": "sample", "num_frames": frames, "fps": fps, "folder": folder})
            wants.append({"frames": indices.tolist(), "timestamps": times})
    for job, want, got in zip(jobs, wants, oracle.run(jobs)):
        oracle.expect(got == want, f"sampling {job}: {got}, expected {want}")
    print(f"sampling: {len(jobs)} videos")


def check_sizes(oracle):
    cases, wants = [], []
    while len(cases) < 20000:
        height, width = (int(2 ** oracle.rng.uniform(0, 13)) for _ in range(2))
        factor = oracle.rng.choice([28, 32, 14, 16])
        low = int(2 ** oracle.rng.uniform(8, 20))
        high = int(low * 2 ** oracle.rng.uniform(0, 10))
        try:
            if oracle.rng.random() < 0.5:
                want = smart_resize(height, width, factor, low, high)
                case = [height, width, factor, low, high]
            else:
                frames = oracle.rng.randrange(2, 100)
                want = smart_resize_video(frames, height, width, 2, factor, low, high)
                case = [frames, height, width, 2, factor, low, high]
        except ValueError:
            continue
        cases.append(case)
        wants.append(list(want))
    got = oracle.run([{"kind": "sizes", "cases": cases}])[0]["sizes"]
    differing = sum(g != w for g, w in zip(got, wants))
    oracle.expect(differing == 0, f"smart_resize: {differing} sizes differ")
    print(f"sizes: {len(cases)}")


def check_damage(oracle):
    """Cut and mutated files: what Pillow finds truncated must be refused; nothing may crash."""
    originals = [c for c in files.every_format(oracle.folder / "damage", oracle.rng)
                 if c.path.stat().st_size < 200000]
    jobs, cut_refused = [], []
    for number in range(600):
        case = oracle.rng.choice(originals)
        data = bytearray(case.path.read_bytes())
        is_cut = number % 2 == 0
        if is_cut:
            data = data[:oracle.rng.choice([oracle.rng.randrange(len(data)), len(data) - oracle.rng.randrange(1, 40)])]
        else:
            for _ in range(oracle.rng.choice([1, 3, 20])):
                data[oracle.rng.randrange(len(data))] = oracle.rng.randrange(256)
        path = oracle.folder / f"damaged{number}"
        path.write_bytes(data)
        jobs.append({"kind": "decode", "path": str(path), "max_pixels": 1 << 22})
        cut_refused.append(is_cut)
    counts = {"both take": 0, "both refuse": 0, "only ours refuses": 0, "only Pillow refuses": 0}
    for job, is_cut, got in zip(jobs, cut_refused, oracle.run(jobs)):
        try:
            load_image(job["path"])
            taken = True
        except Exception:  # Pillow reports damage by a dozen types
            taken = False
        ours = "error" not in got
        counts[("both take" if ours else "only ours refuses") if taken else
               ("only Pillow refuses" if ours else "both refuse")] += 1
        if is_cut:
            oracle.expect(taken or not ours, f"{job['path']} is cut, refused by Pillow, taken by ours")
    print(f"damage: {len(jobs)} files, {counts}")


def print_speed(oracle):
    prep = Qwen2VLImageProcessor(size={"shortest_edge": 65536, "longest_edge": 1048576}, **QWEN3_VL)
    folder = oracle.model_folder("speed", prep, Qwen3VLVideoProcessor(), "nested")
    for suffix, paths in files.speed_sets(oracle.folder, oracle.rng).items():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            best = 0.0
            for _ in range(3):
                begin = time.perf_counter()
                for path in paths:
                    prep(load_image(str(path)), return_tensors="pt")
                best = max(best, len(paths) / (time.perf_counter() - begin))
            job = {"kind": "bench", "paths": [str(p) for p in paths], "threads": threads, "repeats": 3, "folder": folder}
            ours = oracle.run([job])[0]["images_per_s"]
            print(f"speed: {suffix}, {threads} thread{'s' * (threads > 1)}: {ours:.1f} images/s,"
                  f" transformers with as many intra-op threads {best:.1f}, ratio {ours / best:.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("probe")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--keep", help="folder for the files made (default: a temporary one)")
    args = parser.parse_args()
    print(f"seed {args.seed}; Pillow {Image.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.keep or temporary)
        (folder / "damage").mkdir(parents=True)
        oracle = Oracle(args.probe, folder, args.seed)
        for check in (check_sizes, check_sampling, check_formats, check_images, check_videos, check_damage, print_speed):
            check(oracle)
    print(f"{len(oracle.failures)} differences")
    return 1 if oracle.failures else 0


if __name__ == "__main__":
    sys.exit(main())
