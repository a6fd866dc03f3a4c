"""What the parts of this benchmark share: our program, its data and configs in a scratch folder, a lock, medians."""
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("HANOK_BUILD", ROOT / "build"))
LONGEST_SHARED_TURN_S = 120
TOKENIZER = str(ROOT / "tests/data/qwen3_vl_tokenizer")


def environment():
    """What launch/env.sh makes."""
    text = subprocess.run(["bash", "-c", f'. "{ROOT}/launch/env.sh" && env -0'], capture_output=True, check=True).stdout.decode()
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


ENV = environment()
# The peer runs in the user's environment, with one courtesy: its waiting threads sleep as ours do, else a busy machine slows it tenfold.
OWN = ("MKL_CBWR", "OMP_NUM_THREADS", "THP_MEM_ALLOC_ENABLE")
PEER_ENV = {**{k: v for k, v in os.environ.items() if k not in OWN}, "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": ENV["GOMP_SPINCOUNT"]}


held = {}  # lock file -> (open file, since when)


@contextlib.contextmanager
def locked(path):
    """Holds `path` as flock(1) would, if one is given. Short cases that follow each other share one turn of it."""
    if path and path not in held:
        file = open(path, "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        held[path] = file, time.monotonic()
    yield
    if path and time.monotonic() - held[path][1] > LONGEST_SHARED_TURN_S:
        held.pop(path)[0].close()


def median(values):
    return statistics.median(values)


def write_config(folder, name, model, stage, dataset, **changes):
    """A run of one stage on one packed dataset, without evaluation, saving or export. JSON is YAML."""
    config = {
        "name": name, "out": f"{folder}/run-{name}", "seed": 7, "device": "cpu", "model": model,
        "data": {"cache": f"{folder}/packs", "chat_template": "qwen3_vl", "min_pixels": 4096, "max_pixels": 65536,
                 "sets": {"train": {"path": dataset}}},
        "optimizer": {"lr": 1e-3, "schedule": "constant"},
        "stages": [{"name": "all", "weight": "token", **stage}],
        "save": {"every": 0, "export_model": False},
    }
    for key, value in changes.items():
        node = config
        *path, last = key.split("__")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    path = f"{folder}/{name}.yaml"
    pathlib.Path(path).write_text(json.dumps(config, indent=1))
    return path


def command(ranks, *arguments):
    program = [str(BUILD / "launch/trainer"), *arguments]
    return program if ranks == 0 else ["mpirun", "-np", str(ranks), *program]


def run(config, ranks=1, out=None):
    """A fresh run; its lines of metrics.jsonl, and the seconds from the start of the command to each."""
    out = pathlib.Path(out or json.loads(pathlib.Path(config).read_text())["out"])
    shutil.rmtree(out, ignore_errors=True)
    began = time.time()
    done = subprocess.run(command(ranks, "--config", config, "--set", f"out={out}"), env=ENV, cwd=ROOT, capture_output=True, text=True)
    seconds = time.time() - began
    if done.returncode != 0:
        raise SystemExit(f"trainer: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"], seconds


def write_conversations(path, conversations):
    with open(path, "w", encoding="utf-8") as file:
        for number, messages in enumerate(conversations):
            file.write(json.dumps({"id": f"s{number}", "messages": messages}, ensure_ascii=False) + "\n")


def chat(question, answer, picture=None):
    user = [{"type": "image", "image": picture}] if picture else []
    return [{"role": "user", "content": user + [{"type": "text", "text": question}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
