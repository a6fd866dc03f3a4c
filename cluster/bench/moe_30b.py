"""Qwen3-VL-30B-A3B's shape (128 experts, 8 for each token) in bf16 on a few GPUs: rate, FLOPs and where a step's time goes.
usage: moe_30b.py [--gpus 4] [--layers 24] [--seq-len 4096] [--rows 2] [--micro-batches 4] [--steps 8] [--set KEY=VALUE] [--work bench] [--json FILE]
Experts lie over all GPUs (ep), data too (dp); weights are random and routing is free. The optimizer's state of all 48 layers
needs eight GPUs: with fewer, fewer layers are trained, and the output says so. FLOPs: model/cost.h (active parameters, causal attention halved)."""
import argparse
import json
import os
import subprocess
import sys

import measured_run

ALL_LAYERS = 48


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--layers", type=int, default=24, help=f"of {ALL_LAYERS}")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=2, help="packed rows of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=4, help="of a rank and step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--limit", type=float, default=150, help="seconds of the training")
    measured_run.add_common_options(parser)
    options = parser.parse_args()
    measured_run.prepare(options)
    gpus, work = options.gpus, options.work
    settings = [f"data.sets.rows.path={measured_run.rows_file(work, 200, f'--text --tokens {options.seq_len}')}", f"data.cache={work}/packs",
                f"model.decoder.layers={options.layers}", f"parallel.dp={gpus}", f"parallel.ep={gpus}", f"stages.0.seq_len={options.seq_len}",
                f"stages.0.rows_per_micro_batch={options.rows}", f"stages.0.rows_per_step={options.rows * options.micro_batches * gpus}",
                f"stages.0.steps={options.steps}", f"log.profile_step={options.steps}", *options.set]
    run = measured_run.train("cluster/bench/moe_30b.yaml", gpus, settings, work, "moe_30b", options.limit)
    if run.error or len(run.steps) < 4:
        sys.exit(f"{run.command}\n{run.error or f'{len(run.steps)} steps, expected 4 or more'}")
    warm = run.steps[2:-1]  # the last one is traced
    result = measured_run.figures(run, gpus, warm) | {
        "gpus": gpus, "layers": options.layers, "seq_len": options.seq_len, "rows": options.rows, "seconds": round(run.seconds),
        "busiest_expert": max(s["expert_tokens_max"] / s["expert_tokens_mean"] for s in warm), "settings": options.set}
    measured_run.keep(result, options.json)
    print(f"Qwen3-VL-30B-A3B shape, {options.layers} of {ALL_LAYERS} layers, {gpus} GPUs, ep {gpus}, {options.rows} row(s) of {options.seq_len}, "
          f"{options.micro_batches} micro-batches: {result['tokens_per_s_per_gpu']:,.0f} tok/s and {result['tflops_per_gpu']:.0f} model TFLOP/s per GPU, "
          f"step {result['step_s'] * 1e3:.0f} ms, peak {result['peak_gib']:.0f} GiB, busiest expert {result['busiest_expert']:.2f} x the mean")
    print(json.dumps(result))
    if run.trace():
        sys.stdout.flush()
        subprocess.run([sys.executable, os.path.join(measured_run.HERE, "kernel_table.py"), run.trace(), "30"], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
