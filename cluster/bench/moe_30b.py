"""Qwen3-VL-30B-A3B's shape (128 experts, 8 for each token) in bf16 on a few GPUs: rate, FLOPs and where a step's time goes.
usage: moe_30b.py [--gpus 4] [--layers 24] [--seq-len 4096] [--rows 1] [--micro-batches 4] [--steps 8] [--set KEY=VALUE] [--work bench] [--json FILE]
Experts lie over all GPUs (ep), data too (dp); weights are random, so routing is free and nearly even. The optimizer's state of all 48 layers
needs eight GPUs: with fewer, fewer layers are trained, and the output says so. FLOPs: model/cost.h (active parameters, causal attention halved)."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ALL_LAYERS = 48


def tail(log, lines=12):
    with open(log, encoding="utf-8", errors="replace") as text:
        return "\n".join(line[:300] for line in text.read().splitlines()[-lines:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--layers", type=int, default=24, help=f"of {ALL_LAYERS}")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=1, help="packed rows of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=4, help="of a rank and step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], help="a further setting")
    parser.add_argument("--work", default="bench")
    parser.add_argument("--json")
    parser.add_argument("--limit", type=int, default=150, help="seconds of the training")
    options = parser.parse_args()
    gpus, work = options.gpus, os.path.abspath(options.work)
    rows, run, log = (os.path.join(work, name) for name in (f"rows_moe_{options.seq_len}", "runs/moe_30b", "moe_30b.log"))
    os.makedirs(work, exist_ok=True)
    if not os.path.exists(os.path.join(rows, "rows.jsonl")):
        subprocess.run([sys.executable, os.path.join(HERE, "make_rows.py"), rows, "200", "--text", "--tokens", str(options.seq_len)],
                       check=True, stdout=subprocess.DEVNULL)
    settings = [f"data.sets.rows.path={rows}/rows.jsonl", f"data.cache={work}/packs", f"model.decoder.layers={options.layers}",
                f"parallel.dp={gpus}", f"parallel.ep={gpus}", f"stages.0.seq_len={options.seq_len}",
                f"stages.0.rows_per_micro_batch={options.rows}", f"stages.0.rows_per_step={options.rows * options.micro_batches * gpus}",
                f"stages.0.steps={options.steps}", f"log.profile_step={options.steps}", f"out={run}"] + options.set
    subprocess.run(["rm", "-rf", run], check=True)
    command = ["mpirun", "-np", str(gpus), "trainer", "--config", "cluster/bench/moe_30b.yaml"]
    command += [word for setting in settings for word in ("--set", setting)]
    began = time.time()
    with open(log, "w", encoding="utf-8") as out:
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=options.limit).returncode
        except subprocess.TimeoutExpired:
            code = 124
    seconds = time.time() - began
    path = os.path.join(run, "metrics.jsonl")
    steps = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as lines:
            steps = [s for s in map(json.loads, lines) if s["kind"] == "step"]
    if code or len(steps) < 4:
        sys.exit(f"{' '.join(command)}\nexit {code} after {seconds:.0f} s, {len(steps)} steps\n{tail(log)}")
    warm = steps[2:-1]  # the last one is traced
    middle = lambda field: statistics.median(s[field] for s in warm)  # noqa: E731
    result = {"gpus": gpus, "layers": options.layers, "seq_len": options.seq_len, "rows": options.rows, "tokens_per_s_per_gpu": middle("tokens_per_s") / gpus,
              "tflops_per_gpu": middle("model_flops_per_s") / gpus / 1e12, "step_s": middle("step_s"),
              "peak_gib": max(s["memory_peak_gib"] for s in steps), "losses": [steps[0]["loss"], steps[-1]["loss"]],
              "busiest_expert": max(s["expert_tokens_max"] / s["expert_tokens_mean"] for s in warm), "seconds": round(seconds), "settings": options.set}
    print(f"Qwen3-VL-30B-A3B shape, {options.layers} of {ALL_LAYERS} layers, {gpus} GPUs, ep {gpus}, {options.rows} row(s) of {options.seq_len}, "
          f"{options.micro_batches} micro-batches: {result['tokens_per_s_per_gpu']:,.0f} tok/s and {result['tflops_per_gpu']:.0f} model TFLOP/s per GPU, "
          f"step {result['step_s'] * 1e3:.0f} ms, peak {result['peak_gib']:.0f} GiB, busiest expert {result['busiest_expert']:.2f} x the mean")
    print(json.dumps(result))
    trace = os.path.join(run, f"trace_train_{options.steps}.json")
    subprocess.run([sys.executable, os.path.join(HERE, "kernel_table.py"), trace, "30"], check=False)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(result, out, indent=1)
    return 0


sys.exit(main())
