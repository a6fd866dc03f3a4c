"""A run that lost everything after a checkpoint and started again, against the same run left alone: weights, master values,
moments, losses and data order are the same bits, from any checkpoint, within a stage and between two. Checkpoints are read here
without the program's own code: manifest, shards and runs put together into global tensors.

    resume.py            needs build/launch/trainer (HANOK_BUILD)
"""

import json
import pathlib
import shutil
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "launch"))
from harness import committed, expect, make_case, metrics, model_hash, remove, run  # noqa: E402

DTYPES = {"F32": np.float32, "BF16": np.uint16}
STAGES = ["align", "all"]


def read_shard(path):
    """name -> 1-D array, from the bytes of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            out[name] = np.frombuffer(data[8 + size + begin : 8 + size + end], DTYPES[entry["dtype"]])
    return out


def read_checkpoint(folder):
    """(global tensors by name, state). Every element must be written by some rank, and alike by all that write it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    tensors = {t["name"]: np.zeros(int(np.prod(t["shape"])), DTYPES[t["dtype"]]) for t in manifest["tensors"]}
    times = {name: np.zeros(values.size, np.int32) for name, values in tensors.items()}
    for rank in range(len(manifest["shards"])):
        values = read_shard(folder / f"shard-{rank}.safetensors")
        for piece in json.loads((folder / f"shard-{rank}.json").read_text())["pieces"]:
            starts = [(b + i * stride, n) for b, n, stride, count in piece["runs"] for i in range(count)]
            where = np.concatenate([np.arange(b, b + n) for b, n in starts])
            name = piece["tensor"]
            seen = times[name][where] > 0
            expect((tensors[name][where][seen] == values[name][seen]).all(), f"{folder}: ranks disagree on {name}")
            tensors[name][where] = values[name]
            times[name][where] += 1
    for name, count in times.items():
        expect((count > 0).all(), f"{folder}: no rank wrote element {int(np.argmin(count))} of {name}")
    return tensors, manifest["state"]


def order(checkpoint):
    return STAGES.index(checkpoint[0]), checkpoint[1]


def path_of(folder, checkpoint):
    return pathlib.Path(folder) / "run/checkpoints" / checkpoint[0] / f"step_{checkpoint[1]:08d}"


def forget_export(folder):
    shutil.rmtree(f"{folder}/run/model", ignore_errors=True)
    (pathlib.Path(folder) / "run/exported").unlink(missing_ok=True)


def losses(folder):
    """(stage, step) -> what the step saw and gave. A step done twice counts as it was done last."""
    keys = ("loss", "grad_norm", "tokens", "label_tokens", "lr")
    return {(m["stage"], m["step"]): [m.get(k) for k in keys] for m in metrics(folder) if "grad_norm" in m}


def expect_same(a, b, what):
    expect(a.keys() == b.keys(), f"{what}: tensors {sorted(a.keys() ^ b.keys())[:10]}")
    for name, values in a.items():
        same = values.shape == b[name].shape and values.tobytes() == b[name].tobytes()
        expect(same, f"{what}: {name} differs in {int((values != b[name]).sum())} of {values.size} elements")


def main():
    stages = [
        {"name": "align", "trainable": ["connector.**"], "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 4},
        {"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 8},
    ]
    changes = {"stages": stages, "save": {"every": 2, "keep": 100}, "eval": {"set": "heldout", "every": 3}}
    reference = None
    for ranks, settings in [(1, []), (2, []), (2, ["parallel.tp=2"]), (4, ["parallel.tp=2"])]:
        sets = [word for s in settings for word in ("--set", s)]
        calm, config = make_case(**changes)
        run(ranks, "--config", config, *sets)
        points = sorted(committed(calm), key=order)
        last = points[-1]
        expect(last == ("all", 8), f"last checkpoint {last}")
        final, state = read_checkpoint(path_of(calm, last))
        weights = model_hash(f"{calm}/run/model")
        expected = losses(calm)
        expect(len(expected) == 12, f"steps {sorted(expected)}")
        chosen = [p for p in points[:-1] if ranks < 4 or p == ("all", 4)]
        for point in chosen[:: 1 if ranks == 2 else 3]:
            for later in points[points.index(point) + 1 :]:
                shutil.rmtree(path_of(calm, later))
            forget_export(calm)
            run(ranks, "--config", config, *sets)
            what = f"{ranks} ranks {settings}, from {point}"
            tensors, again = read_checkpoint(path_of(calm, last))
            expect_same(tensors, final, what)
            expect(again["train"] == state["train"], f"{what}: state {again['train']} instead of {state['train']}")
            expect(model_hash(f"{calm}/run/model") == weights, f"{what}: exported model")
            expect(losses(calm) == expected, f"{what}: losses or data differ")
            expect(sorted(committed(calm), key=order) == points, f"{what}: checkpoints {committed(calm)}")
            print(f"{what}: {len(tensors)} tensors, {len(expected)} losses, same bits")
        # The same checkpoint, started again on another cut with nothing left to train: the exported model is the same bits.
        for other_ranks, other in [(1, []), (2, ["--set", "parallel.tp=2"])]:
            if (other_ranks, other) == (ranks, sets):
                continue
            forget_export(calm)
            run(other_ranks, "--config", config, *other)
            expect(model_hash(f"{calm}/run/model") == weights, f"{ranks} ranks {settings} exported by {other_ranks} {other}")
        if reference is None:
            reference = final
        worst = max(float(np.abs(final[n] - reference[n]).max()) for n in final if n.startswith("model/"))
        print(f"{ranks} ranks {settings}: farthest weight from one rank's run {worst:.2e}")
        remove(calm)


if __name__ == "__main__":
    main()
