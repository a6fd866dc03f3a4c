"""Packs a VQA table and chat JSONL and compares every sample with transformers' Qwen3VLProcessor on the same chats.

    dataset.py PROBE DATA [--seed N] [--chats N]       DATA holds qwen3_vl_tokenizer/ (tests/data)

Token ids, grids and M-RoPE positions must be identical, pixels bit-identical (pictures are PNG and lossless WebP), the
labels of a last assistant turn must be its text and end token. Speed is printed, not judged.
"""
import argparse
import csv
import json
import os
import pathlib
import random
import subprocess
import tempfile
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from PIL import Image
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
LIMITS = {"min_pixels": 48 * 48, "max_pixels": 320 * 320}
WORDS = "the picture shows 숫자 여덟 a cat 그리고 dog, 3.14 且 图片 ünïcödé don't x=1; 😀 <b> 12345 \t tab  two  spaces \"quoted\" a,b line\nbreak".split(" ")
KOREAN = "그림에 보이는 숫자는 무엇입니까?"


class Probe:
    def __init__(self, program, settings):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.settings = settings

    def ask(self, **job):
        self.process.stdin.write(json.dumps({**self.settings, **job}) + "\n")
        self.process.stdin.flush()
        answers = []
        while (line := self.process.stdout.readline()) != "done\n":
            if not line:
                raise SystemExit(f"the probe died at {job}")
            answers.append(json.loads(line))
            if isinstance(answers[-1], dict) and "error" in answers[-1]:
                raise SystemExit(f"{job}: {answers[-1]['error']}")
        return answers


class Files:
    """Random pictures, frames and texts."""

    def __init__(self, folder, seed):
        self.folder, self.random = pathlib.Path(folder), random.Random(seed)
        self.pixels = np.random.default_rng(seed)
        self.count = 0

    def picture(self, height, width, path=None):
        self.count += 1
        noise = self.pixels.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.BICUBIC)
        path = path or self.folder / f"picture{self.count}.{self.random.choice(['png', 'webp'])}"
        image.save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
        return path

    def image(self):
        return self.picture(self.random.randint(20, 500), self.random.randint(20, 500))

    def video(self):
        self.count += 1
        folder = self.folder / f"clip{self.count}"
        folder.mkdir()
        height, width = self.random.randint(30, 200), self.random.randint(30, 200)
        for frame in range(self.random.randint(2, 14)):
            self.picture(height, width, folder / f"{frame}.png")
        return folder

    def text(self):
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randint(1, 12)))

    def part(self):
        kind = self.random.choices(["text", "image", "video"], [5, 4, 1])[0]
        if kind == "text":
            return {"type": "text", "text": self.text()}
        if kind == "image":
            return {"type": "image", self.random.choice(["image", "path", "url"]): str(self.image().relative_to(self.folder))}
        fps = {"fps": self.random.choice([1, 2, 2.5, 24, 29.97])} if self.random.random() < 0.7 else {}
        return {"type": "video", "video": str(self.video().relative_to(self.folder)), **fps}

    def chat(self):
        turns = [{"role": "system", "content": self.text()}] if self.random.random() < 0.3 else []
        for _ in range(self.random.randint(1, 3)):
            content = self.text() if self.random.random() < 0.3 else [self.part() for _ in range(self.random.randint(1, 4))]
            turns += [{"role": "user", "content": content}, {"role": "assistant", "content": self.text()}]
        return turns[:-1] if self.random.random() < 0.15 else turns


class Reference:
    def __init__(self, tokenizer_folder, template, root):
        tokenizer = Qwen2Tokenizer.from_pretrained(tokenizer_folder)
        size = {"shortest_edge": LIMITS["min_pixels"], "longest_edge": LIMITS["max_pixels"]}
        normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        self.processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(patch_size=16, size=size, **normal),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}, **normal),
            chat_template=template,
        )
        self.root = root
        config = Qwen3VLConfig(
            text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
                         "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 32,
                         "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}},
            vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 16,
                           "deepstack_visual_indexes": []},
        )  # fmt: skip
        self.model = Qwen3VLModel(config)

    def inputs(self, messages):
        images, videos, metadata = [], [], []
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    path = next(part[key] for key in ("image", "url", "path") if key in part)
                    images.append(Image.open(self.root / path).convert("RGB"))
                if part["type"] == "video":
                    files = sorted((self.root / part["video"]).iterdir(), key=lambda p: int(p.stem))
                    frames = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
                    videos.append(frames)
                    metadata.append({"total_num_frames": len(frames), "fps": part.get("fps")})
        is_open = messages[-1]["role"] != "assistant"
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_open)
        visuals = {"images": images or None, "videos": videos or None}
        if videos:
            visuals["video_metadata"] = metadata
        return self.processor(text=[text], return_tensors="pt", **visuals)

    def positions(self, inputs):
        position, _ = self.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        )
        return position[:, 0].flatten().tolist()


def merged_pixels(inputs, items):
    """Pixels of images and videos in the order of the text, as the packed batch has them."""
    rest = {False: inputs.get("pixel_values"), True: inputs.get("pixel_values_videos")}
    out = []
    for is_video, t, h, w in items:
        out.append(rest[is_video][: t * h * w])
        rest[is_video] = rest[is_video][t * h * w :]
    return torch.cat(out).numpy() if out else np.zeros((0, 1536), np.float32)


def compare(reference, samples, chats, pixels_file, what):
    assert len(samples) == len(chats), f"{what}: {len(samples)} samples of {len(chats)} chats"
    pixels = np.fromfile(pixels_file, np.float32)
    counts = {"ids": 0, "grids": 0, "positions": 0, "pixels": 0, "labels": 0}
    num_tokens = num_items = 0
    for sample, messages in zip(samples, chats):
        inputs = reference.inputs(messages)
        ids = inputs["input_ids"][0].tolist()
        num_tokens += len(ids)
        num_items += len(sample["items"])
        counts["ids"] += ids != sample["tokens"]
        for is_video, key in ((False, "image_grid_thw"), (True, "video_grid_thw")):
            grids = [item[1:] for item in sample["items"] if item[0] == is_video]
            counts["grids"] += grids != (inputs[key].tolist() if key in inputs else [])
        counts["positions"] += reference.positions(inputs) != sample["positions"]
        size = sample["rows"] * sample["columns"]
        ours, pixels = pixels[:size].reshape(sample["rows"], sample["columns"]), pixels[size:]
        theirs = merged_pixels(inputs, sample["items"])
        counts["pixels"] += ours.shape != theirs.shape or not np.array_equal(ours, theirs)
        tokenizer = reference.processor.tokenizer
        if messages[-1]["role"] == "assistant":
            turns = [m["content"] for m in messages if m["role"] == "assistant"]
            labels = [tokenizer.decode(sample["tokens"][begin:end]) for begin, end in sample["labels"]]
            texts = [t if isinstance(t, str) else "".join(p["text"] for p in t) for t in turns]
            counts["labels"] += labels != [t + "<|im_end|>" for t in texts]
        else:
            counts["labels"] += sample["labels"] != []
    print(f"{what}: {len(samples)} samples, {num_tokens} tokens, {num_items} pictures and videos; differing: {counts}")
    return sum(counts.values())


def chat_of_row(row):
    lines = [row["question"]] + [f"{letter}. {row[letter]}" for letter in "abcd" if row[letter]]
    text = "\n".join(lines + ["Answer with the letter of the right choice."])
    user = [{"type": "image", "image": row["path"]}, {"type": "text", "text": text}]
    chat = [{"role": "user", "content": user}]
    return chat + ([{"role": "assistant", "content": row["answer"].lower()}] if row["answer"] else [])


def write_table(files, path, rows):
    table = []
    for i in range(rows):
        choices = [f"{files.text()} {i}" for _ in range(files.random.randint(2, 4))] + ["", ""]
        num = sum(1 for c in choices if c)
        table.append({"id": f"q{i}", "path": files.image().name, "question": f"{KOREAN} {files.text()}".strip(),
                      **dict(zip("abcd", choices)),
                      "answer": files.random.choice(["", "a", "B" if num > 1 else "a"])})  # fmt: skip
    with open(path, "w", newline="", encoding="cp949", errors="ignore") as stream:
        writer = csv.DictWriter(stream, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    with open(path, newline="", encoding="cp949") as stream:  # what survived the narrower encoding, blanks cut
        return [{key: value.strip() for key, value in row.items()} for row in csv.DictReader(stream)]


def speed(probe, files, folder, reference):
    """Packing and reading of photographs, beside the processor on the same files."""
    num, messages = 240, []
    with open(folder / "photos.jsonl", "w") as stream:
        for i in range(num):
            path = folder / f"photo{i}.jpg"
            files.picture(480, 640, path)
            chat = [{"role": "user", "content": [{"type": "image", "image": path.name}, {"type": "text", "text": "What?"}]},
                    {"role": "assistant", "content": "This."}]  # fmt: skip
            messages.append(chat)
            stream.write(json.dumps({"messages": chat}) + "\n")
    torch.set_num_threads(1)
    begin = time.time()
    for chat in messages:
        reference.inputs(chat)
    rates = [f"transformers (1 thread) {num / (time.time() - begin):.0f}"]
    for store in ("encoded", "resized"):
        for threads in (1, 2):
            report = probe.ask(do="pack", path=str(folder / "photos.jsonl"), cache=str(folder / f"cache-{store}-{threads}"),
                               reader_threads=threads, store_images=store)[0]  # fmt: skip
            size = os.path.getsize(report["file"])
            reads = []
            for readers in (1, 2):
                read = probe.ask(do="speed", file=report["file"], threads=readers)[0]
                reads.append(f"{read['images'] / read['seconds']:.0f}")
            rates.append(f"pack {store} ({threads} threads) {num / report['seconds']:.0f}")
        rates.append(f"read {store} (1, 2 threads) {', '.join(reads)} ({size // num} bytes a picture)")
    print("640 x 480 JPEG, pictures a second (one picture a sample):", "; ".join(rates))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("probe")
    arguments.add_argument("data", type=pathlib.Path)
    arguments.add_argument("--seed", type=int, default=20261121)
    arguments.add_argument("--chats", type=int, default=60)
    options = arguments.parse_args()
    print("seed", options.seed)
    tokenizer = str(options.data / "qwen3_vl_tokenizer")
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        probe = Probe(options.probe, {"folder": tokenizer, "max_bad_share": 0, "cache": str(folder / "cache"), **LIMITS})
        template = probe.ask(do="template", name="qwen3_vl")[0]
        reference = Reference(tokenizer, template, folder)
        files = Files(folder, options.seed)

        chats = [files.chat() for _ in range(options.chats)]
        (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
        table = write_table(files, folder / "table.csv", 40)
        sets = [
            ("chat JSONL", {"path": str(folder / "chats.jsonl")}, chats),
            ("VQA table", {"path": str(folder / "table.csv"), "encoding": "cp949"}, [chat_of_row(r) for r in table]),
        ]
        num_differing = 0
        for what, dataset, messages in sets:
            for store in ("encoded", "resized"):
                report = probe.ask(do="pack", reader_threads=2, store_images=store, **dataset)[0]
                samples = probe.ask(do="read", file=report["file"], pixels=str(folder / "pixels"))
                num_differing += compare(reference, samples, messages, folder / "pixels", f"{what}, {store}")
        speed(probe, files, folder, reference)
        probe.process.stdin.close()
    raise SystemExit(1 if num_differing else 0)


if __name__ == "__main__":
    main()
