"""Weight files against the reference library: what it writes we read, what we write it reads, what it refuses we refuse.

usage: safetensors_files.py <safetensors_probe> [seed]
(The name is not safetensors.py: scripts beside it would then import this file instead of the library.)
"""

import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PROBE = sys.argv[1]
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]
# Names of dtypes that the format has and this project does not read.
FOREIGN_DTYPES = ["U16", "U32", "U64", "C64", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]


def probe(*args, **kwargs):
    done = subprocess.run([PROBE, *map(str, args)], capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        sys.exit(f"probe {args}: exit {done.returncode}: {done.stderr}")
    return done.stdout


def random_tensor(rng, dtype):
    shape = [rng.choice([0, 1, 2, 3, 5, 17]) for _ in range(rng.randrange(5))]
    count = 1
    for dim in shape:
        count *= dim
    width = torch.empty(0, dtype=dtype).element_size()
    raw = bytes(rng.randrange(2) if dtype == torch.bool else rng.randrange(256) for _ in range(count * width))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_name(rng):
    return "".join(rng.choice("abc.01_/ \"\\\n\u00e9\ud55c\U0001f600") for _ in range(rng.randrange(12)))


def check_round_trips(rng, folder):
    count = 0
    for trial in range(40):
        tensors = {random_name(rng): random_tensor(rng, rng.choice(DTYPES)) for _ in range(rng.randrange(30))}
        metadata = {random_name(rng): random_name(rng) for _ in range(rng.randrange(4))} or None
        save_file(tensors, folder / "in.safetensors", metadata)
        probe("copy", folder / "in.safetensors", folder / "out.safetensors")
        loaded = load_file(folder / "out.safetensors")
        with safe_open(folder / "out.safetensors", "pt") as opened:
            one_by_one = {name: opened.get_tensor(name) for name in opened.keys()}
            if (opened.metadata() or None) != metadata:
                sys.exit(f"trial {trial}: metadata {opened.metadata()}, expected {metadata}")
        for got in (loaded, one_by_one):
            if {k: bits(v) for k, v in got.items()} != {k: bits(v) for k, v in tensors.items()}:
                sys.exit(f"trial {trial}: tensors differ after the round trip")
        count += len(tensors)
    print(f"round trips: {count} tensors of 40 files bit-identical both ways")


def check_models(folder):
    from transformers import AutoModelForCausalLM, Qwen3Config
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = Qwen3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=False)
    torch.manual_seed(SEED)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        for shard_size in ("1GB", "20KB"):
            source = folder / f"model_{dtype}_{shard_size}"
            target = folder / f"copy_{dtype}_{shard_size}"
            model.save_pretrained(source, max_shard_size=shard_size)
            sharded = (source / "model.safetensors.index.json").exists()
            if sharded != (shard_size == "20KB"):
                sys.exit(f"{source}: sharded is {sharded}")
            target.mkdir()
            (target / "config.json").write_text((source / "config.json").read_text())
            probe("folder", source, target / "model.safetensors")
            copied = AutoModelForCausalLM.from_pretrained(target, dtype=dtype)
            want = {k: bits(v) for k, v in model.state_dict().items()}
            if {k: bits(v) for k, v in copied.state_dict().items()} != want:
                sys.exit(f"{source}: weights differ after the round trip")
    print("transformers: single and sharded folders, fp32 and bf16, open with equal weights")


def mutated(rng, header, data):
    """Header text and data after a few edits; the length field mostly follows."""
    text = bytearray(header)
    pieces = [b"0", b"1", b"-1", b"{", b"}", b"[", b"]", b",", b'"', b"1e3", b"null", b"\xff", b"\0", b" ", b"\n", b"9" * 20,
              b'"dtype"', b'"F32"', b'"U64"', b'"shape"', b'"data_offsets"', b'"__metadata__":{},', b'"x":1,']
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text))
        kind = rng.randrange(4)
        if kind == 0:
            text[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            text[at:at] = rng.choice(pieces)
        elif kind == 2:
            del text[at:at + rng.randrange(1, 6)]
        else:
            digits = [i for i, c in enumerate(text) if chr(c).isdigit()]
            if digits:
                text[rng.choice(digits)] = ord(rng.choice("0123456789"))
    length = len(text) + (0 if rng.randrange(10) else rng.randrange(-9, 10))
    if rng.randrange(10) == 0:
        data = data[:rng.randrange(len(data) + 1)] + bytes(rng.randrange(3))
    return struct.pack("<Q", max(length, 0)) + bytes(text) + data


WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1,
          "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8, "C64": 8}


def drawn(rng):
    """A well-formed file, or one that lies in one number."""
    entries, begin = [], 0
    for i in range(rng.randrange(6)):
        dtype = rng.choice(list(WIDTHS))
        shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
        size = WIDTHS[dtype]
        for dim in shape:
            size *= dim
        entries.append([f"t{i}", {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}])
        begin += size
    data_bytes = begin
    rng.shuffle(entries)
    if rng.randrange(2):
        data_bytes = max(0, data_bytes + rng.choice([-1, 0, 0, 1]))
        if entries:
            entry = rng.choice(entries)
            lie = rng.randrange(5)
            if lie < 2:
                entry[1]["data_offsets"][lie] = max(0, entry[1]["data_offsets"][lie] + rng.choice([-8, -1, 1, 8, 1 << 62]))
            elif lie == 2:
                entry[1]["shape"].append(rng.choice([0, 1, 2, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]))
            elif lie == 3:
                entry[1]["dtype"] = rng.choice(list(WIDTHS) + ["F31", "f32", ""])
            else:
                entry[0] = rng.choice(entries)[0]
    metadata = rng.choice([[], [["__metadata__", {"format": "pt"}]], [["__metadata__", {}]]])
    items = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in metadata + entries]
    text = ("{" + ",".join(items) + "}" + rng.choice(["", " ", "     ", "\n"])).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def reference_accepts(path):
    try:
        with safe_open(path, "pt") as opened:
            opened.keys()
        return True
    except Exception:  # any refusal counts: the library has several kinds
        return False


def stricter(raw):
    """Why we may refuse what the reference takes: blanks before the text (the format's description forbids them), keys twice or unknown,
    dtypes that we do not read, sizes beyond 63 bits."""
    length, = struct.unpack("<Q", raw[:8])
    reasons = [] if raw[8:9] == b"{" else ["begins with a blank"]

    def pairs(items):
        keys = [key for key, _ in items]
        if len(keys) != len(set(keys)):
            reasons.append("key twice")
        return dict(items)

    header = json.loads(raw[8:8 + length], object_pairs_hook=pairs)
    for name, entry in header.items():
        if name == "__metadata__":
            if entry is None:
                reasons.append("null metadata")
            continue
        if isinstance(entry, list):
            reasons.append("entry as a list")
            continue
        if set(entry) != {"dtype", "shape", "data_offsets"}:
            reasons.append("unknown key")
        if entry["dtype"] in FOREIGN_DTYPES:
            reasons.append("foreign dtype")
        product = 1
        for dim in entry["shape"]:
            product *= max(dim, 1)
        if product >= 1 << 60 or len(entry["shape"]) > 64:
            reasons.append("beyond 63 bits or 64 dims")
    return reasons


def check_hostile(rng, folder):
    tensors = {"a": torch.ones(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 4, dtype=torch.int64),
               "d": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, folder / "seed.safetensors", {"format": "pt"})
    raw = (folder / "seed.safetensors").read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    header, data = raw[8:8 + length], raw[8 + length:]
    paths = []
    for i in range(8000):
        path = folder / f"hostile_{i}.safetensors"
        path.write_bytes(drawn(rng) if i % 2 else mutated(rng, header, data))
        paths.append(path)
    answers = probe("check", input="\n".join(map(str, paths)) + "\n").splitlines()
    if len(answers) != len(paths):
        sys.exit(f"hostile: {len(answers)} answers for {len(paths)} files")
    both = neither = ours_only = 0
    for path, answer in zip(paths, answers):
        reference, ours = reference_accepts(path), answer == "ok"
        if ours and not reference:
            sys.exit(f"hostile: accepted by us only: {path.read_bytes()!r}")
        if reference and not ours:
            if not stricter(path.read_bytes()):
                sys.exit(f"hostile: refused without reason: {path.read_bytes()!r}: {answer}")
            ours_only += 1
        both += reference and ours
        neither += not reference and not ours
        path.unlink()
    print(f"hostile headers: {neither} refused by both, {both} accepted by both, {ours_only} refused by our stricter rules, "
          "0 accepted by us alone")


def main():
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        check_round_trips(rng, folder)
        check_hostile(rng, folder)
        check_models(folder)


main()
