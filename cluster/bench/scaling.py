"""The same work per GPU on one GPU and on several, data parallel: tokens/s per GPU, their ratio, and how much communication was left
in the open (from the trace of one step). Prints a markdown table.
usage: scaling.py [--shape 4b] [--gpus 1,4] [--rows 2] [--micro-batches 2] [--work FOLDER] [--steps K] [--set KEY=VALUE ...] [--beside KEY=VALUE]
--beside: every count is run once more with this setting, for example parallel.overlap=false or optimizer.reduce_dtype=bfloat16.
Model and rows are those of beside_peers.py, made on first use."""
import argparse
import datetime
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CONFIG = "cluster/bench/beside_peers.yaml"


def union(intervals):
    merged = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def length(intervals):
    return sum(end - begin for begin, end in intervals)


def covered(intervals, by):
    """How much of `intervals` lies in `by`; both merged."""
    total, i = 0.0, 0
    for begin, end in intervals:
        while i < len(by) and by[i][1] <= begin:
            i += 1
        j = i
        while j < len(by) and by[j][0] < end:
            total += min(end, by[j][1]) - max(begin, by[j][0])
            j += 1
    return total


def communication(trace):
    """Milliseconds of a traced step: its span, NCCL kernels, those during which nothing else ran, and nothing at all."""
    with open(trace, encoding="utf-8") as file:
        events = [e for e in json.load(file)["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    spans = {True: [], False: []}
    for event in events:
        spans["nccl" in event["name"].lower()].append((event["ts"], event["ts"] + event["dur"]))
    nccl, other = union(spans[True]), union(spans[False])
    everything = union(spans[True] + spans[False])
    whole = everything[-1][1] - everything[0][0]
    return {"span_ms": whole / 1e3, "nccl_ms": length(nccl) / 1e3, "exposed_ms": (length(nccl) - covered(nccl, other)) / 1e3,
            "idle_ms": (whole - length(everything)) / 1e3}


def call(command, log):
    with open(log, "w", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=600, cwd=ROOT).returncode
    if code:
        with open(log, encoding="utf-8", errors="replace") as text:
            sys.exit(f"{' '.join(command)}: exit {code}\n" + "\n".join(text.read().splitlines()[-6:]))


def measure(gpus, options, settings, name):
    run = os.path.join(options.work, "runs", name)
    shutil.rmtree(run, ignore_errors=True)
    profiled = max(4, options.steps - 2)
    model, rows = os.path.join(options.work, options.shape), os.path.join(options.work, "rows__text_tokens_4096")
    values = {"model.path": model, "data.sets.rows.path": f"{rows}/rows.jsonl", "data.cache": f"{options.work}/packs", "out": run,
              "stages.0.seq_len": 4096, "stages.0.rows_per_micro_batch": options.rows,
              "stages.0.rows_per_step": options.rows * options.micro_batches * gpus, "stages.0.steps": options.steps,
              "log.profile_step": profiled}
    arguments = [part for setting in [f"{k}={v}" for k, v in values.items()] + settings for part in ("--set", setting)]
    call(["mpirun", "-np", str(gpus), "trainer", "--config", CONFIG, *arguments], os.path.join(options.work, f"{name}.log"))
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as lines:
        steps = [s for s in map(json.loads, lines) if s["kind"] == "step"]
    # The traced step and its neighbours are slower than the others.
    warm = [s for s in steps[2:] if abs(s["step"] - profiled) > 1] or steps[-1:]
    result = {"tok_s": statistics.median(s["tokens_per_s"] for s in warm) / gpus, "step_s": statistics.median(s["step_s"] for s in warm),
              "tflops": statistics.median(s["model_flops_per_s"] for s in warm) / gpus / 1e12, "peak": max(s["memory_peak_gib"] for s in steps),
              "loss": [steps[0]["loss"], steps[-1]["loss"]]}
    traces = glob.glob(os.path.join(run, "trace_*.json"))
    return result | (communication(traces[0]) if traces else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4b")
    parser.add_argument("--gpus", default="1,4", help="counts, the first is what the others are compared with")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of 4,096 tokens of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=2, help="of a rank and step")
    parser.add_argument("--work", default="bench")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--beside")
    options = parser.parse_args()
    os.makedirs(options.work, exist_ok=True)
    model, rows = os.path.join(options.work, options.shape), os.path.join(options.work, "rows__text_tokens_4096")
    if not os.path.exists(os.path.join(model, "config.json")):
        call([sys.executable, f"{HERE}/make_hf_folder.py", options.shape, model], os.path.join(options.work, "make.log"))
    if not os.path.exists(os.path.join(rows, "rows.jsonl")):
        call([sys.executable, f"{HERE}/make_rows.py", rows, "400", "--text", "--tokens", "4096"], os.path.join(options.work, "make.log"))
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{datetime.date.today()}; {gpu}; torch {torch.__version__}; {options.shape}, {options.micro_batches} micro-batches of "
          f"{options.rows} x 4,096 tokens a GPU and step {' '.join(options.set)}\n", flush=True)
    print("| GPUs | tok/s per GPU | of the first | step ms | TFLOP/s per GPU | peak GiB | NCCL ms | in the open | idle | loss |\n" + "|---" * 10 + "|")
    first = None
    for gpus in map(int, options.gpus.split(",")):
        for settings in ([], [options.beside]) if options.beside and gpus > 1 else ([],):
            name = f"scaling_{options.shape}_{gpus}" + "".join("_" + s.replace("=", "_") for s in settings)
            r = measure(gpus, options, options.set + settings, name)
            first = first or r["tok_s"]
            share = lambda key: f"{r[key]:.1f} ms, {100 * r[key] / r['span_ms']:.1f} %" if key in r else "-"  # noqa: E731,B023
            print(f"| {gpus} {' '.join(settings)} | {r['tok_s']:,.0f} | {r['tok_s'] / first:.3f} | {1000 * r['step_s']:.0f} | {r['tflops']:.0f} | "
                  f"{r['peak']:.1f} | {r.get('nccl_ms', 0):.1f} | {share('exposed_ms')} | {share('idle_ms')} | "
                  f"{r['loss'][0]:.3f} to {r['loss'][1]:.3f} |", flush=True)


main()
