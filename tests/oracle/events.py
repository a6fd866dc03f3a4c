"""TensorBoard's own readers on what our event files say: every scalar of metrics.jsonl, once, also after kills and resumes; and the
files' checksums. The probe writes what a killed start leaves.
usage: events.py PROBE"""
import glob
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

from tensorboard.backend.event_processing import event_accumulator, event_file_loader
from tensorboard.util import tensor_util

TAGS = {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/lr": "lr", "speed/step_s": "step_s", "speed/data_wait_s": "data_wait_s",
        "speed/tokens_per_s": "tokens_per_s", "speed/model_flops_per_s": "model_flops_per_s", "memory/gib": "memory_gib",
        "memory/peak_gib": "memory_peak_gib"}
HELD_OUT = {"held_out/loss": "loss", "held_out/accuracy": "accuracy"}
# (stage, resumed step, last step): the second start goes on from a checkpoint that lies before the kill, the last one anew in stage a.
STARTS = [("a", 0, 12), ("a", 5, 8), ("a", 8, 20), ("b", 0, 11), ("b", 7, 9), ("a", 13, 15)]


def f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def expected(folder):
    """tag -> [(step of the run, value)] from metrics.jsonl; checks that no step is doubled or lost."""
    out, begin, end, stage, steps = {}, 0, 0, None, []
    with open(f"{folder}/metrics.jsonl", encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line["stage"] != stage:
                stage, begin = line["stage"], end
            at = begin + line["step"]
            end = max(end, at)
            if line["kind"] == "step":
                steps.append(at)
            for tag, key in (TAGS if line["kind"] == "step" else HELD_OUT).items():
                value = math.nan if line[key] is None else f32(line[key])
                out.setdefault(tag, []).append((at, value))
    assert steps == list(range(1, len(steps) + 1)), f"steps of metrics.jsonl: {steps}"
    return out


def same(a, b):
    return [s for s, _ in a] == [s for s, _ in b] and all(x == y or (math.isnan(x) and math.isnan(y)) for (_, x), (_, y) in zip(a, b))


def main():
    probe = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(STARTS, 1):
            subprocess.run([probe, folder, *map(str, start)], check=True, stdout=subprocess.DEVNULL)
            want = expected(folder)
            reader = event_accumulator.EventAccumulator(folder, size_guidance={event_accumulator.SCALARS: 0})
            reader.Reload()
            tags = reader.Tags()["scalars"]
            assert sorted(tags) == sorted(want), f"start {number}: tags {tags}"
            for tag, points in want.items():
                got = [(e.step, e.value) for e in reader.Scalars(tag)]
                assert same(got, points), f"start {number}: {tag}: got {got}, expected {points}"
        files = sorted(glob.glob(f"{folder}/events.out.tfevents.*"))
        assert len(files) == len(STARTS), files
        count = 0
        for path in files:  # the newer reader, which converts the values, and checks the checksums of every record
            for event in event_file_loader.EventFileLoader(path).Load():
                for value in event.summary.value:
                    tensor_util.make_ndarray(value.tensor)
                    count += 1
        with open(files[0], "r+b") as file:  # a flipped bit must be noticed: the checksums are real ones
            file.seek(os.path.getsize(files[0]) - 20)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        events = []
        try:
            events = list(event_file_loader.EventFileLoader(files[0]).Load())
        except Exception as error:
            assert "crc" in str(error).lower() or "corrupt" in str(error).lower() or "checksum" in str(error).lower(), error
        whole = 2 + 12 + 2  # version, session, steps, evaluations of the first start
        assert len(events) < whole, "a damaged record was read as if nothing had happened"
        print(f"{len(STARTS)} starts, {len(files)} files, {count} scalars: TensorBoard reads what metrics.jsonl says")


if __name__ == "__main__":
    main()
