"""Ours and the library a user would pick instead, on the same tokens and the same GPUs, one after the other in one call.
usage: beside_peers.py [ROW ...] [--gpus N] [--work FOLDER] [--json FILE] [--steps K]
Rows: see ROWS below; without names, all that fit. A row that asks for more GPUs than --gpus is measured on fewer, ours and the peer's, and says so.
Rates are medians over the steps after the warm-up; model FLOPs of both are counted by model/cost.h (causal attention halved)."""
import argparse
import dataclasses
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CONFIG = "cluster/bench/beside_peers.yaml"


@dataclasses.dataclass
class Row:
    name: str
    shape: str
    gpus: int
    seq_len: int
    data: str  # options of make_rows.py
    samples: int
    rows: int = 1  # packed rows of a micro-batch
    micro_batches: int = 2  # of a rank and step
    ours: str = ""  # further settings; {gpus} is filled in
    shared: bool = False  # all ranks work on the same rows (context or tensor parallel)
    peer: str = "compile"  # options of peer_transformers.py; empty: none
    published: tuple = ()  # tokens/s per GPU, whose
    steps: int = 9


ROWS = [
    Row("8b_4k", "8b", 8, 4096, "--text --tokens 4096", 400, rows=2),
    Row("4b_4k", "4b", 1, 4096, "--text --tokens 4096", 400, rows=2),
    Row("8b_pages_8k", "8b", 8, 8192, "--page 768 --tokens 1360", 1500, peer="compile"),
    Row("8b_32k", "8b", 8, 32768, "--text --tokens 32768", 48, ours="parallel.cp={gpus} parallel.dp=1", shared=True, peer="",
        published=(3890, "torchtitan float8, 8 H100"), steps=6),
    Row("8b_128k", "8b", 8, 131072, "--text --tokens 131072", 12, micro_batches=1, shared=True, peer="", steps=4,
        ours="parallel.cp={gpus} parallel.dp=1 stages.0.recompute=full", published=(1071, "torchtitan float8, 8 H100")),
    Row("8b_256k", "8b", 8, 262144, "--text --tokens 262144", 6, micro_batches=1, shared=True, peer="", steps=3,
        ours="parallel.cp={gpus} parallel.dp=1 stages.0.recompute=full", published=(548, "torchtitan float8, 8 H100")),
]


def call(command, log, limit):
    """The command's exit code; its output goes to the file `log`."""
    with open(log, "w", encoding="utf-8") as out:
        try:
            return subprocess.run(command, shell=True, stdout=out, stderr=subprocess.STDOUT, timeout=limit, cwd=ROOT).returncode
        except subprocess.TimeoutExpired:
            return 124


def tail(log, lines=4):
    with open(log, encoding="utf-8", errors="replace") as text:
        return "\n".join(line[:300] for line in text.read().splitlines()[-lines:])


def measure_ours(row, gpus, work, rows, settings, limit):
    run = os.path.join(work, "runs", row.name)
    command = f"mpirun -np {gpus} trainer --config {CONFIG} " + " ".join(f"--set {s}" for s in settings + [f"out={run}"])
    log = os.path.join(work, f"{row.name}.ours.log")
    began = time.time()
    code = call(f"rm -rf {shlex.quote(run)}; {command}", log, limit)
    result = {"command": command, "seconds": round(time.time() - began)}
    if code:
        return result | {"error": f"exit {code}: {tail(log)}"}
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
        steps = [s for s in map(json.loads, lines) if s["kind"] == "step"]
    warm = steps[min(3, len(steps) // 2):]
    middle = lambda field: statistics.median(s[field] for s in warm)  # noqa: E731
    return result | {
        "tokens_per_s": middle("tokens_per_s"), "tflops": middle("model_flops_per_s") / gpus / 1e12, "step_s": middle("step_s"),
        "peak_gib": max(s["memory_peak_gib"] for s in steps), "losses": [steps[0]["loss"], steps[-1]["loss"]],
        "data_wait": sum(s["data_wait_s"] for s in warm) / sum(s["step_s"] for s in warm), "fill": middle("fill")}


def measure_peer(row, gpus, work, settings, limit):
    batches = os.path.join(work, f"{row.name}.safetensors")
    count = row.micro_batches * gpus * 4
    dump = f"build/tests/bench/batch_dump {CONFIG} {count} {batches} " + " ".join(settings + [f"out={work}/runs/dump"])
    log = os.path.join(work, f"{row.name}.peer.log")
    code = call(dump, log, limit)
    if code:
        return {"error": f"batch_dump: exit {code}: {tail(log)}"}
    command = (f"torchrun --nproc-per-node {gpus} cluster/bench/peer_transformers.py {row.shape} {batches} {row.micro_batches} {row.peer} "
               f"row={row.seq_len}")
    code = call(command, log, limit)
    os.remove(batches)
    with open(log, encoding="utf-8", errors="replace") as text:
        found = re.search(r"PEER .*?: (\d+) tok/s in all.*peak ([\d.]+) GiB, loss (\S+)", text.read())
    if not found:
        return {"command": command, "error": f"exit {code}: {tail(log)}"}
    return {"command": command, "tokens_per_s": float(found[1]), "peak_gib": float(found[2]), "loss": float(found[3])}


def measure(row, options):
    gpus = min(row.gpus, options.gpus)
    work = options.work
    model, rows = os.path.join(work, row.shape), os.path.join(work, "rows_" + re.sub(r"\W+", "_", row.data))
    for path, command in ((os.path.join(model, "config.json"), f"{sys.executable} {HERE}/make_hf_folder.py {row.shape} {model}"),
                          (os.path.join(rows, "rows.jsonl"), f"{sys.executable} {HERE}/make_rows.py {rows} {row.samples} {row.data}")):
        if not os.path.exists(path) and call(command, os.path.join(work, "make.log"), 300):
            raise SystemExit(f"{command}\n{tail(os.path.join(work, 'make.log'))}")
    settings = [f"model.path={model}", f"data.sets.rows.path={rows}/rows.jsonl", f"data.cache={work}/packs",
                f"stages.0.seq_len={row.seq_len}", f"stages.0.rows_per_micro_batch={row.rows}",
                f"stages.0.rows_per_step={row.rows * row.micro_batches * (1 if row.shared else gpus)}", f"stages.0.steps={options.steps or row.steps}"]
    ours = measure_ours(row, gpus, work, rows, settings + row.ours.format(gpus=gpus).split() + options.set, options.limit)
    peer = measure_peer(row, gpus, work, settings, options.limit) if row.peer else {}
    return {"row": row.name, "gpus": gpus, "asked": row.gpus, "ours": ours, "peer": peer, "published": row.published}


def table_line(result):
    ours, peer, gpus = result["ours"], result["peer"], result["gpus"]
    name = result["row"] + (f", {gpus} GPUs" if gpus == result["asked"] else f", {gpus} GPUs (of {result['asked']})")
    if "error" in ours:
        return f"| {name} | failed | | | | | |"
    rate = ours["tokens_per_s"] / gpus
    if "tokens_per_s" in peer:
        theirs = peer["tokens_per_s"] / gpus
        beside = f"{theirs:,.0f} | {ours['tflops'] * theirs / rate:.0f} | {peer['peak_gib']:.0f} | {rate / theirs:.2f}"
    elif result["published"]:
        beside = f"{result['published'][0]:,} ({result['published'][1]}) | | | {rate / result['published'][0]:.2f}"
    else:
        beside = ("failed" if peer else "") + " | | | "
    return f"| {name} | {rate:,.0f} | {ours['tflops']:.0f} | {ours['peak_gib']:.0f} | {beside} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--work", default="bench")
    parser.add_argument("--json")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="a further setting of ours")
    parser.add_argument("--limit", type=int, default=600, help="seconds of one program")
    options = parser.parse_args()
    unknown = set(options.row) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"got row {', '.join(sorted(unknown))}; expected {', '.join(row.name for row in ROWS)}")
    os.makedirs(options.work, exist_ok=True)
    results = []
    for row in ROWS:
        if options.row and row.name not in options.row:
            continue
        result = measure(row, options)
        results.append(result)
        for who in ("ours", "peer"):
            if "error" in result[who]:
                print(f"{row.name}, {who}: {result[who]['error']}", flush=True)
        print(table_line(result), json.dumps({k: v for k, v in result["ours"].items() if k != "command"}), flush=True)
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{datetime.date.today()}; {gpu}; torch {torch.__version__}")
    print("| work | ours tok/s per GPU | TFLOP/s | peak GiB | peer tok/s per GPU | TFLOP/s | peak GiB | ratio |\n|---|---|---|---|---|---|---|---|")
    print("\n".join(table_line(result) for result in results))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(results, out, indent=1)
    return any("error" in result[who] for result in results for who in ("ours", "peer"))


sys.exit(main())
