"""What the system tests share: a tiny model, tokenizer and dataset in a temporary folder, and the real program under mpirun."""
import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD = os.environ.get("HANOK_BUILD", os.path.join(ROOT, "build"))
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
           "<|video_pad|>"]
VOCAB = 320


def environment():
    """The environment that launch/env.sh makes."""
    command = f'. "{ROOT}/launch/env.sh" && env -0'
    text = subprocess.run(["bash", "-c", command], capture_output=True, check=True, env={**os.environ, "HANOK_BUILD": BUILD}).stdout
    return dict(item.split("=", 1) for item in text.decode().split("\0") if "=" in item)


ENV = environment()


def byte_alphabet():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    others = [b for b in range(256) if b not in keep]
    return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def make_tokenizer(folder):
    """Byte-level BPE with 256 bytes, 40 merges and the special tokens; ids of the specials start at 296."""
    os.makedirs(folder, exist_ok=True)
    alphabet = byte_alphabet()
    vocab = {alphabet[b]: b for b in range(256)}
    merges = []
    for pair in ["i s", "t h", "e r", "i n", "o n", "a t", "o r", "th e", "i g", "i t", "d i", "n u", "m b", "h e", "a n", "r e",
                 "\u0120 t", "\u0120 d", "w h", "i c"]:
        a, b = pair.split()
        if a in vocab and b in vocab and a + b not in vocab:
            vocab[a + b] = len(vocab)
            merges.append(pair)
    while len(vocab) < 296:  # unused rows keep the ids of the specials fixed
        vocab[f"<unused{len(vocab)}>"] = len(vocab)
    with open(f"{folder}/vocab.json", "w", encoding="utf-8") as file:
        json.dump(vocab, file, ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {str(296 + i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
             for i, text in enumerate(SPECIAL)}
    with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
        json.dump({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>",
                   "pad_token": "<|endoftext|>", "unk_token": None, "bos_token": None, "model_max_length": 4096}, file)


def special_id(text):
    return 296 + SPECIAL.index(text)


def make_digits(folder, count, seed=0, answers=True, name="train.csv"):
    """Real handwritten digits with four choices."""
    from PIL import Image
    from sklearn.datasets import load_digits
    digits = load_digits()
    rng = random.Random(seed)
    os.makedirs(f"{folder}/images", exist_ok=True)
    rows = []
    for index in rng.sample(range(len(digits.images)), count):
        path = f"images/{index}.png"
        pixels = (digits.images[index] * 255 / 16).astype("uint8")
        Image.fromarray(pixels).resize((64, 64), Image.NEAREST).convert("RGB").save(f"{folder}/{path}")
        right = int(digits.target[index])
        choices = [right] + rng.sample([d for d in range(10) if d != right], 3)
        rng.shuffle(choices)
        row = {"id": f"digit{index}", "path": path, "question": "Which digit is it?", **dict(zip("abcd", choices))}
        if answers:
            row["answer"] = "abcd"[choices.index(right)]
        rows.append(row)
    with open(f"{folder}/{name}", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return f"{folder}/{name}"


def tiny_config(folder, **changes):
    """A run of 30 steps on 48 digits; keys like "save.every" replace values."""
    config = {
        "name": "tiny", "out": f"{folder}/run", "seed": 7, "threads": 1, "device": "cpu",
        "model": {
            "tokenizer": f"{folder}/tokenizer", "dtype": "float32",
            "tower": {"depth": 2, "hidden": 32, "ffn": 64, "heads": 4, "position_grid": 8},
            "connector": {"merge": 2},
            "decoder": {"layers": 2, "hidden": 32, "ffn": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "vocab": VOCAB,
                        "mrope_section": [4, 2, 2], "tied": True},
            "taps": [0], "image_token": special_id("<|image_pad|>"), "video_token": special_id("<|video_pad|>"),
            "vision_start_token": special_id("<|vision_start|>"), "vision_end_token": special_id("<|vision_end|>"),
        },
        "data": {"cache": f"{folder}/packs", "chat_template": "qwen3_vl", "min_pixels": 1024, "max_pixels": 65536, "pack_window": 16,
                 "sets": {"train": {"path": f"{folder}/data/train.csv"}, "heldout": {"path": f"{folder}/data/heldout.csv"}}},
        "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        "stages": [{"name": "align", "trainable": ["connector.**"], "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 8},
                   {"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 22}],
        "save": {"every": 3, "keep": 2},
        "eval": {"set": "heldout"},
    }
    for key, value in changes.items():
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    path = f"{folder}/config.yaml"
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)  # JSON is YAML
    return path


def make_case(**changes):
    """Temporary folder with tokenizer, data and config. The caller removes it."""
    folder = tempfile.mkdtemp(prefix="hanok-test-")
    make_tokenizer(f"{folder}/tokenizer")
    make_digits(f"{folder}/data", 48)
    make_digits(f"{folder}/data", 24, seed=1, name="heldout.csv")
    return folder, tiny_config(folder, **changes)


def command(ranks, *arguments):
    return ["mpirun", "-np", str(ranks), "trainer", *arguments]


def run(ranks, *arguments, timeout=300, check=True):
    done = subprocess.run(command(ranks, *arguments), env=ENV, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    if check and done.returncode != 0:
        print(done.stdout[-3000:], done.stderr[-6000:], sep="\n")
        raise SystemExit(f"FAILED: {' '.join(arguments)} on {ranks} ranks ended with {done.returncode}")
    return done


def start(ranks, *arguments, log):
    return subprocess.Popen(command(ranks, *arguments), env=ENV, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)


def ranks_of(marker):
    """Process ids of trainer ranks whose command line holds `marker` (the config path)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        if os.path.basename(words[0]) == "trainer" and marker in words:
            found.append(int(pid))
    return found


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def model_hash(folder):
    return {name: file_hash(f"{folder}/{name}") for name in sorted(os.listdir(folder)) if name.endswith(".safetensors")}


def metrics(folder):
    with open(f"{folder}/run/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def committed(folder):
    """(stage, step) of complete checkpoints."""
    out = []
    base = f"{folder}/run/checkpoints"
    for stage in sorted(os.listdir(base)) if os.path.isdir(base) else []:
        if not os.path.isdir(f"{base}/{stage}"):
            continue
        for name in os.listdir(f"{base}/{stage}"):
            if name.removeprefix("step_").isdigit() and os.path.isfile(f"{base}/{stage}/{name}/manifest.json"):
                out.append((stage, int(name.split("_")[1])))
    return sorted(out)


def expect(condition, message):
    if not condition:
        raise SystemExit(f"FAILED: {message}")


def remove(folder):
    shutil.rmtree(folder, ignore_errors=True)
