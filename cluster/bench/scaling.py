"""The same work per GPU on one GPU and on several, data parallel: tokens/s per GPU, their ratio, and how much communication was left
in the open (from the trace of one step). Prints a markdown table.
usage: scaling.py [--shape 4b] [--gpus 1,4] [--rows 2] [--micro-batches 2] [--work FOLDER] [--steps K] [--set KEY=VALUE ...] [--beside KEY=VALUE]
                  [--json FILE] [--limit SECONDS]
--beside: every count is run once more with this setting, for example parallel.overlap=false or optimizer.reduce_dtype=bfloat16.
Model and rows are those of beside_peers.py, made on first use."""
import argparse
import sys

import gpu_trace
import measured_run

CONFIG = "cluster/bench/beside_peers.yaml"


def measure(gpus, options, settings, name):
    """Figures of one count of GPUs, or {"error": ...}."""
    profiled = max(4, options.steps - 2)
    settings = [f"model.path={measured_run.model_folder(options.work, options.shape)}", f"data.cache={options.work}/packs",
                f"data.sets.rows.path={measured_run.rows_file(options.work, 400, '--text --tokens 4096')}",
                "stages.0.seq_len=4096", f"stages.0.rows_per_micro_batch={options.rows}",
                f"stages.0.rows_per_step={options.rows * options.micro_batches * gpus}", f"stages.0.steps={options.steps}",
                f"log.profile_step={profiled}", *settings]
    run = measured_run.train(CONFIG, gpus, settings, options.work, name, options.limit)
    if run.error:
        return {"error": run.error, "command": run.command}
    # The traced step and its neighbours are slower than the others.
    warm = [s for s in run.steps[2:] if abs(s["step"] - profiled) > 1] or run.steps[-1:]
    times = gpu_trace.times_of(gpu_trace.events_of(run.trace())) if run.trace() else None
    return measured_run.figures(run, gpus, warm) | (times or {}) | {"command": run.command}


def table_line(name, r, first):
    if "error" in r:
        return f"| {name} | failed |" + " |" * 8
    share = lambda key: f"{r[key]:.1f} ms, {100 * r[key] / r['span_ms']:.1f} %" if key in r else "-"  # noqa: E731
    rate = r["tokens_per_s_per_gpu"]
    ratio = f"{rate / first:.3f}" if first else ""
    return (f"| {name} | {rate:,.0f} | {ratio} | {1000 * r['step_s']:.0f} | {r['tflops_per_gpu']:.0f} | {r['peak_gib']:.1f} | "
            f"{r.get('nccl_ms', 0):.1f} | {share('exposed_ms')} | {share('idle_ms')} | {r['losses'][0]:.3f} to {r['losses'][1]:.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4b")
    parser.add_argument("--gpus", default="1,4", help="counts, the first is what the others are compared with")
    parser.add_argument("--rows", type=int, default=2, help="packed rows of 4,096 tokens of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=2, help="of a rank and step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--beside")
    parser.add_argument("--limit", type=float, default=600, help="seconds of one run")
    measured_run.add_common_options(parser)
    options = parser.parse_args()
    measured_run.prepare(options)
    print(f"{measured_run.hardware()}; {options.shape}, {options.micro_batches} micro-batches of "
          f"{options.rows} x 4,096 tokens a GPU and step {' '.join(options.set)}\n", flush=True)
    print("| GPUs | tok/s per GPU | of the first | step ms | TFLOP/s per GPU | peak GiB | NCCL ms | in the open | idle | loss |\n" + "|---" * 10 + "|")
    first, results = None, {}
    for gpus in map(int, options.gpus.split(",")):
        for settings in ([], [options.beside]) if options.beside and gpus > 1 else ([],):
            name = f"scaling_{options.shape}_{gpus}" + "".join("_" + s.replace("=", "_") for s in settings)
            result = results[name] = measure(gpus, options, options.set + settings, name)
            measured_run.keep(results, options.json)
            if len(results) == 1:
                first = result.get("tokens_per_s_per_gpu")
            if "error" in result:
                print(f"{name}: {result['error']}", file=sys.stderr, flush=True)
            print(table_line(" ".join([str(gpus), *settings]), result, first), flush=True)
    return any("error" in result for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
