"""The 8B on many layouts of the same GPUs: rate, idle beside the formula of the pipeline, memory and time beside what `trainer plan` says.
usage: layouts.py [LAYOUT ...] [--gpus 4] [--model bench/8b] [--work bench] [--steps 7] [--budget 240] [--seq-len N] [--json FILE] [--set KEY=VALUE]
Without names: all of LAYOUTS, in order, until the budget of seconds is spent; what was not begun is said. A name may end in *.
Every layout gets the same tokens a step. Idle: share of a step of rank 0 in which no kernel but NCCL's runs, from its trace (pipelines only)."""
import argparse
import dataclasses
import datetime
import fnmatch
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CONFIG = "cluster/bench/beside_peers.yaml"


@dataclasses.dataclass
class Layout:
    name: str
    settings: str  # what the others leave out stays 1; stages.0. is short for s.
    seq_len: int = 4096
    rows: int = 16  # of a step


# Layers of the 8B's pieces for rows of text: the head and its loss take as long as four layers. (The balance that is found by itself
# supposes half of the tokens from pictures.)
PIECES = {"pp2": "20,16", "pp4": "10,10,10,6", "pp8": "5,5,5,5,5,5,5,1"}

LAYOUTS = [
    Layout("dp4", "parallel.dp=4"),
    Layout("tp2_dp2", "parallel.tp=2"),
    Layout("tp4", "parallel.tp=4"),
    Layout("pp4_1f1b", "parallel.pp=4 {pp4}"),
    Layout("pp4_zb-v", "parallel.pp=4 parallel.schedule=zb-v {pp8}"),
    Layout("pp2_dp2_1f1b", "parallel.pp=2 {pp2}"),
    Layout("cp4_32k_heads", "parallel.cp=4 parallel.context=heads", 32768, 2),
    Layout("dp4_selective", "parallel.dp=4 s.recompute=selective"),
    Layout("dp4_full", "parallel.dp=4 s.recompute=full"),
    Layout("dp4_full_offload", "parallel.dp=4 s.recompute=full s.offload=true"),
    Layout("pp4_interleaved", "parallel.pp=4 parallel.schedule=interleaved {pp8}"),
    Layout("pp4_zb-h1", "parallel.pp=4 parallel.schedule=zb-h1 {pp4}"),
    Layout("pp2_dp2_interleaved", "parallel.pp=2 parallel.schedule=interleaved {pp4}"),
    Layout("pp2_dp2_zb-h1", "parallel.pp=2 parallel.schedule=zb-h1 {pp2}"),
    Layout("pp2_dp2_zb-v", "parallel.pp=2 parallel.schedule=zb-v {pp4}"),
    Layout("cp4_32k_ring", "parallel.cp=4 parallel.context=ring", 32768, 2),
    Layout("cp4_32k_gather", "parallel.cp=4 parallel.context=gather", 32768, 2),
    Layout("dp4_2rows_selective", "parallel.dp=4 s.rows_per_micro_batch=2 s.recompute=selective"),
    Layout("dp4_4rows_full", "parallel.dp=4 s.rows_per_micro_batch=4 s.recompute=full"),
    Layout("dp4_selective_offload", "parallel.dp=4 s.recompute=selective s.offload=true"),
    Layout("tp2_pp2_zb-v", "parallel.tp=2 parallel.pp=2 parallel.schedule=zb-v {pp4}"),
    Layout("tp2_cp2_32k_heads", "parallel.tp=2 parallel.cp=2 parallel.context=heads", 32768, 2),
]


def cause_in(log):
    """The first error of a rank, or the end of what was said."""
    with open(log, encoding="utf-8", errors="replace") as text:
        lines = text.read().splitlines()
    return next((line[:400] for line in lines if line.startswith("E2")), "\n".join(line[:300] for line in lines[-6:]))


def setting(layout, key, default):
    return next((s.split("=")[1] for s in layout.settings.split() if s.startswith(key + "=")), default)


def formula(layout, gpus):
    """Share of a step that a pipeline waits; None: the layout is none, or has no closed formula."""
    p = int(setting(layout, "parallel.pp", 1))
    if p == 1:
        return None
    others = int(setting(layout, "parallel.tp", 1)) * int(setting(layout, "parallel.cp", 1)) * p
    m = layout.rows // (gpus // others) // int(setting(layout, "s.rows_per_micro_batch", 1))
    parts = {"1f1b": 1, "interleaved": 2, "zb-h1": 3}.get(setting(layout, "parallel.schedule", "1f1b"))
    return (p - 1) / (parts * m + p - 1) if parts else 0.0


def idle_of(trace):
    with open(trace, encoding="utf-8") as text:
        events = [e for e in json.load(text)["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not events:  # not a GPU
        return None
    begin, end = min(e["ts"] for e in events), max(e["ts"] + e["dur"] for e in events)
    busy, last = 0.0, begin
    for event in sorted((e for e in events if "nccl" not in e["name"].lower()), key=lambda e: e["ts"]):
        stop = event["ts"] + event["dur"]
        busy += max(0.0, stop - max(last, event["ts"]))
        last = max(last, stop)
    return 1 - busy / (end - begin)


def measure(layout, options):
    run, log = os.path.join(options.work, "runs", layout.name), os.path.join(options.work, f"layout_{layout.name}.log")
    rows = os.path.join(options.work, f"rows_layouts_{layout.seq_len}")
    if not os.path.exists(os.path.join(rows, "rows.jsonl")):
        samples = layout.rows * (options.steps + 2)
        subprocess.run([sys.executable, os.path.join(HERE, "make_rows.py"), rows, str(samples), "--text", "--tokens", str(layout.seq_len)],
                       check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(run, ignore_errors=True)
    settings = [f"model.path={options.model}", f"data.sets.rows.path={rows}/rows.jsonl", f"data.cache={options.work}/packs", f"out={run}",
                f"stages.0.seq_len={layout.seq_len}", f"stages.0.rows_per_step={layout.rows}", f"stages.0.steps={options.steps}"]
    own = layout.settings.format(**{name: f"parallel.pp_layers=[{layers}]" for name, layers in PIECES.items()}).split()
    settings += [s.replace("s.", "stages.0.", 1) if s.startswith("s.") else s for s in own] + options.set
    bubble = formula(layout, options.gpus)
    if bubble is not None:
        settings.append(f"log.profile_step={options.steps}")
    command = ["mpirun", "-np", str(options.gpus), "trainer", "--config", CONFIG] + [w for s in settings for w in ("--set", s)]
    began = time.time()
    with open(log, "w", encoding="utf-8") as out:
        try:
            code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=options.limit, cwd=ROOT).returncode
        except subprocess.TimeoutExpired:
            code = 124
    result = {"layout": layout.name, "command": " ".join(command), "seconds": round(time.time() - began)}
    if code:
        return result | {"error": f"exit {code}: {cause_in(log)}"}
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as text:
        lines = [json.loads(line) for line in text]
    steps = [line for line in lines if line["kind"] == "step"]
    plan = next((line for line in lines if line["kind"] == "plan"), {})
    warm = steps[2:]
    step_s = statistics.median(s["step_s"] for s in warm)
    tokens = statistics.median(s["tokens"] for s in warm)
    flops = statistics.median(s["model_flops_per_s"] * s["step_s"] for s in warm)
    result |= {"tokens_per_s": tokens / step_s / options.gpus, "tflops": flops / step_s / options.gpus / 1e12, "step_s": step_s,
               "loss": [steps[0]["loss"], steps[-1]["loss"]], "data_wait_s": sum(s["data_wait_s"] for s in warm) / len(warm),
               "peak_gib": plan.get("memory_peak_gib", [s["memory_peak_gib"] for s in steps[-1:]]),
               "peak_gib_planned": plan.get("memory_peak_gib_planned"), "step_s_planned": plan.get("step_s_planned"), "formula": bubble}
    trace = os.path.join(run, f"trace_train_{options.steps}.json")
    if bubble is not None and os.path.exists(trace):
        result["idle"] = idle_of(trace)
    return result


def table_line(r):
    if "error" in r:
        return f"| {r['layout']} | failed: {r['error'].splitlines()[0][:60]} |" + " |" * 9
    share = lambda x: "" if x is None else f"{100 * x:.1f} %"  # noqa: E731
    planned = r["step_s_planned"]
    cells = [f"{r['tokens_per_s']:,.0f}", f"{r['tflops']:.0f}", share(r.get("idle")), share(r["formula"]), f"{r['step_s']:.3f}"]
    cells += [f"{planned:.3f}", f"{100 * (planned / r['step_s'] - 1):+.1f} %"] if planned else ["", ""]
    worst = max(range(len(r["peak_gib"])), key=lambda i: r["peak_gib"][i])
    cells.append(f"{r['peak_gib'][worst]:.1f}")
    if r["peak_gib_planned"]:
        errors = [100 * (p / m - 1) for p, m in zip(r["peak_gib_planned"], r["peak_gib"])]
        cells += [f"{r['peak_gib_planned'][worst]:.1f}", f"{max(errors, key=abs):+.1f} %"]
    else:
        cells += ["", ""]
    return f"| {r['layout']} | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", nargs="*", help=", ".join(layout.name for layout in LAYOUTS))
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--model", help="a folder of cluster/bench/make_hf_folder.py; made where it is missing (default: WORK/8b)")
    parser.add_argument("--work", default="bench")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no layout is begun")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one layout")
    parser.add_argument("--seq-len", type=int, help="tokens of a row, for all layouts")
    parser.add_argument("--json")
    parser.add_argument("--set", action="append", default=[], help="a further setting of every layout")
    options = parser.parse_args()
    options.work = os.path.abspath(options.work)
    options.model = os.path.abspath(options.model or os.path.join(options.work, "8b"))
    chosen = [x for x in LAYOUTS if not options.layout or any(fnmatch.fnmatch(x.name, pattern) for pattern in options.layout)]
    if options.seq_len:
        chosen = [dataclasses.replace(x, seq_len=options.seq_len) for x in chosen]
    if not chosen:
        parser.error(f"got {' '.join(options.layout)}; expected some of {', '.join(x.name for x in LAYOUTS)}")
    os.makedirs(options.work, exist_ok=True)
    if not os.path.exists(os.path.join(options.model, "config.json")):
        shape = os.path.basename(options.model)
        subprocess.run([sys.executable, os.path.join(HERE, "make_hf_folder.py"), shape if shape in ("2b", "4b") else "8b", options.model], check=True)
    began, results, left = time.time(), [], []
    for layout in chosen:
        if time.time() - began > options.budget:
            left.append(layout.name)
            continue
        result = measure(layout, options)
        results.append(result)
        if "error" in result:
            print(f"{layout.name}: {result['error']}", flush=True)
        print(table_line(result), json.dumps({k: v for k, v in result.items() if k not in ("command", "error")}), flush=True)
    print(f"\n{datetime.date.today()}; {options.gpus} GPUs; {os.path.basename(options.model)}; {options.steps} steps, median after the second; "
          "memory: libtorch's peak of the fullest rank, error of the worst rank")
    print("| layout | tok/s per GPU | TFLOP/s | idle | formula | step s | planned | error | peak GiB | planned | error |\n" + "|---" * 11 + "|")
    print("\n".join(map(table_line, results)))
    if left:
        print(f"not begun within {options.budget:.0f} s: {' '.join(left)}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(results, out, indent=1)
    return any("error" in result for result in results)


if __name__ == "__main__":
    sys.exit(main())
