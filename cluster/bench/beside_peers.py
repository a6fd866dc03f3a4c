"""Ours and the library a user would pick instead, on the same tokens and the same GPUs, one after the other in one call.
usage: beside_peers.py [ROW ...] [--gpus N] [--work FOLDER] [--json FILE] [--steps K] [--budget SECONDS] [--limit SECONDS] [--set KEY=VALUE]
Rows: see ROWS below; without names, all. A row that asks for more GPUs than --gpus is measured on fewer, ours and the peer's, and says so.
Rates are medians over the steps after the warm-up; model FLOPs of both are counted by model/cost.h (causal attention halved)."""
import argparse
import dataclasses
import json
import os
import re
import sys
import time

import measured_run

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
    fewer: str = ""  # and where there are fewer GPUs than asked for
    shared: bool = False  # all ranks work on the same rows (context or tensor parallel)
    peer: str = "compile"  # options of peer_transformers.py; empty: none
    published: tuple = ()  # tokens/s per GPU, whose
    steps: int = 9


ROWS = [
    Row("8b_4k", "8b", 8, 4096, "--text --tokens 4096", 400, rows=2),
    Row("4b_4k", "4b", 1, 4096, "--text --tokens 4096", 400, rows=2),
    Row("8b_pages_8k", "8b", 8, 8192, "--page 768 --tokens 1360", 1500),
    Row("8b_32k", "8b", 8, 32768, "--text --tokens 32768", 48, ours="parallel.cp={gpus} parallel.dp=1", shared=True, peer="",
        published=(3890, "torchtitan float8, 8 H100"), steps=6),
    Row("8b_128k", "8b", 8, 131072, "--text --tokens 131072", 12, micro_batches=1, shared=True, peer="", steps=4,
        ours="parallel.cp={gpus} parallel.dp=1 stages.0.recompute=selective", fewer="stages.0.recompute=all_but_attention", published=(1071, "torchtitan float8, 8 H100")),
    Row("8b_256k", "8b", 8, 262144, "--text --tokens 262144", 6, micro_batches=1, shared=True, peer="", steps=3,
        ours="parallel.cp={gpus} parallel.dp=1 stages.0.recompute=all_but_attention", published=(548, "torchtitan float8, 8 H100")),
]


def measure_ours(row, gpus, settings, options):
    run = measured_run.train(CONFIG, gpus, settings, options.work, row.name, options.limit)
    result = {"command": run.command, "seconds": round(run.seconds)}
    if run.error:
        return result | {"error": run.error}
    return result | measured_run.figures(run, gpus, run.steps[min(3, len(run.steps) // 2):])


def measure_peer(row, gpus, settings, options):
    batches, log = (os.path.join(options.work, f"{row.name}.{end}") for end in ("safetensors", "peer.log"))
    dump = ["build/tests/bench/batch_dump", CONFIG, str(row.micro_batches * gpus * 4), batches, *settings, f"out={options.work}/runs/dump"]
    code = measured_run.call(dump, log, options.limit)
    if code != 0:
        return {"error": f"batch_dump: {measured_run.end_text(code, options.limit)}: {measured_run.cause_in(log)}"}
    command = ["torchrun", "--nproc-per-node", str(gpus), "cluster/bench/peer_transformers.py", row.shape, batches, str(row.micro_batches),
               *row.peer.split(), f"row={row.seq_len}"]
    code = measured_run.call(command, log, options.limit)
    os.remove(batches)
    with open(log, encoding="utf-8", errors="replace") as text:
        found = re.search(r"PEER .*?: (\d+) tok/s in all.*peak ([\d.]+) GiB, loss (\S+)", text.read())
    result = {"command": " ".join(command)}
    if not found:
        return result | {"error": f"{measured_run.end_text(code, options.limit)}: {measured_run.cause_in(log)}"}
    return result | {"tokens_per_s_per_gpu": float(found[1]) / gpus, "peak_gib": float(found[2]), "loss": float(found[3])}


def measure(row, options):
    gpus, work = min(row.gpus, options.gpus), options.work
    settings = [f"model.path={measured_run.model_folder(work, row.shape)}", f"data.cache={work}/packs",
                f"data.sets.rows.path={measured_run.rows_file(work, row.samples, row.data)}",
                f"stages.0.seq_len={row.seq_len}", f"stages.0.rows_per_micro_batch={row.rows}",
                f"stages.0.rows_per_step={row.rows * row.micro_batches * (1 if row.shared else gpus)}", f"stages.0.steps={options.steps or row.steps}"]
    own = row.ours.format(gpus=gpus).split() + (row.fewer.split() if gpus < row.gpus else [])
    ours = measure_ours(row, gpus, settings + own + options.set, options)
    peer = measure_peer(row, gpus, settings, options) if row.peer else {}
    return {"row": row.name, "gpus": gpus, "asked": row.gpus, "ours": ours, "peer": peer, "published": row.published}


def table_line(result):
    ours, peer, gpus = result["ours"], result["peer"], result["gpus"]
    name = result["row"] + (f", {gpus} GPUs" if gpus == result["asked"] else f", {gpus} GPUs (of {result['asked']})")
    if "error" in ours:
        return f"| {name} | failed | | | | | | |"
    rate, tflops = ours["tokens_per_s_per_gpu"], ours["tflops_per_gpu"]
    if "tokens_per_s_per_gpu" in peer:
        theirs = peer["tokens_per_s_per_gpu"]
        beside = f"{theirs:,.0f} | {tflops * theirs / rate:.0f} | {peer['peak_gib']:.0f} | {rate / theirs:.2f}"
    elif result["published"]:
        beside = f"{result['published'][0]:,} ({result['published'][1]}) | | | {rate / result['published'][0]:.2f}"
    else:
        beside = ("failed" if peer else "") + " | | | "
    return f"| {name} | {rate:,.0f} | {tflops:.0f} | {ours['peak_gib']:.0f} | {beside} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*", help=", ".join(row.name for row in ROWS))
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no row is begun")
    parser.add_argument("--limit", type=float, default=600, help="seconds of one program")
    measured_run.add_common_options(parser)
    options = parser.parse_args()
    unknown = set(options.row) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"got row {', '.join(sorted(unknown))}; expected {', '.join(row.name for row in ROWS)}")
    measured_run.prepare(options)
    began, results, left = time.time(), [], []
    for row in ROWS:
        if options.row and row.name not in options.row:
            continue
        if time.time() - began > options.budget:
            left.append(row.name)
            continue
        result = measure(row, options)
        results.append(result)
        measured_run.keep(results, options.json)
        for who in ("ours", "peer"):
            if "error" in result[who]:
                print(f"{row.name}, {who}: {result[who]['error']}", flush=True)
        print(table_line(result), json.dumps({k: v for k, v in result["ours"].items() if k != "command"}), flush=True)
    print(f"\n{measured_run.hardware()}")
    print("| work | ours tok/s per GPU | TFLOP/s | peak GiB | peer tok/s per GPU | TFLOP/s | peak GiB | ratio |\n" + "|---" * 8 + "|")
    print("\n".join(table_line(result) for result in results))
    if left:
        print(f"not begun within {options.budget:.0f} s: {' '.join(left)}")
    return any("error" in result[who] for result in results for who in ("ours", "peer"))


if __name__ == "__main__":
    sys.exit(main())
