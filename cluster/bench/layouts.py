"""The 8B on many layouts of the same GPUs: rate, idle beside the formula of the pipeline, memory and time beside what `trainer plan` says.
usage: layouts.py [LAYOUT ...] [--gpus 4] [--rows R] [--model bench/8b] [--work bench] [--steps 7] [--budget 240] [--seq-len N] [--json FILE] [--set KEY=VALUE]
Without names: all of LAYOUTS, in order, until the budget of seconds is spent; what was not begun is said. A name may end in *.
Every layout gets the same tokens a step. Pipelines only: idle, the share of the traced step in which no kernel but NCCL's runs, mean of the stages;
from the diagram of the step before it, update, the share in which norm and update of the weights keep all stages, as they do in any layout; and bubble,
the share of the rest in which the stage that works most has no pass to work on, which formulas are about: they know neither uneven stages nor
updates. From five steps on these two have the lists that were made for what passes took."""
import argparse
import dataclasses
import fnmatch
import json
import os
import statistics
import sys
import time

import gpu_trace
import measured_run
import pipeline_waits

CONFIG = "cluster/bench/beside_peers.yaml"


@dataclasses.dataclass
class Layout:
    name: str  # N stands for all GPUs, H for half of them
    settings: str  # data parallel takes what the others leave; stages.0. is short for s.
    seq_len: int = 4096
    rows: int = 16  # of a step


LAYOUTS = [
    Layout("dpN", "parallel.dp=N"),
    Layout("tpH_dp2", "parallel.tp=H"),
    Layout("tpN", "parallel.tp=N"),
    Layout("ppN_1f1b", "parallel.pp=N"),
    Layout("ppN_1f1b_room", "parallel.pp=N parallel.pp_room=H"),
    Layout("ppN_zb-v", "parallel.pp=N parallel.schedule=zb-v"),
    Layout("ppN_zb-v_room", "parallel.pp=N parallel.schedule=zb-v parallel.pp_room=N"),
    Layout("ppH_dp2_1f1b", "parallel.pp=H"),
    Layout("cpN_32k_heads", "parallel.cp=N parallel.context=heads", 32768, 2),
    Layout("dpN_selective", "parallel.dp=N s.recompute=selective"),
    Layout("dpN_full", "parallel.dp=N s.recompute=full"),
    Layout("dpN_full_offload", "parallel.dp=N s.recompute=full s.offload=true"),
    Layout("ppN_interleaved", "parallel.pp=N parallel.schedule=interleaved"),
    Layout("ppN_zb-h1", "parallel.pp=N parallel.schedule=zb-h1"),
    Layout("ppH_dp2_interleaved", "parallel.pp=H parallel.schedule=interleaved"),
    Layout("ppH_dp2_zb-h1", "parallel.pp=H parallel.schedule=zb-h1"),
    Layout("ppH_dp2_zb-v", "parallel.pp=H parallel.schedule=zb-v"),
    Layout("cpN_32k_ring", "parallel.cp=N parallel.context=ring", 32768, 2),
    Layout("cpN_32k_gather", "parallel.cp=N parallel.context=gather", 32768, 2),
    Layout("dpN_2rows_selective", "parallel.dp=N s.rows_per_micro_batch=2 s.recompute=selective"),
    Layout("dpN_4rows_full", "parallel.dp=N s.rows_per_micro_batch=4 s.recompute=full"),
    Layout("dpN_selective_offload", "parallel.dp=N s.recompute=selective s.offload=true"),
    Layout("cpN_32k_but_attention", "parallel.cp=N s.recompute=all_but_attention", 32768, 2),
    Layout("tp2_ppH_zb-v", "parallel.tp=2 parallel.pp=H parallel.schedule=zb-v"),
    Layout("tp2_cpH_32k_heads", "parallel.tp=2 parallel.cp=H parallel.context=heads", 32768, 2),
]


def on(gpus, layout):
    """The layout with the number of GPUs put in."""
    fill = lambda text: text.replace("N", str(gpus)).replace("H", str(gpus // 2))  # noqa: E731
    return dataclasses.replace(layout, name=fill(layout.name), settings=fill(layout.settings))


def setting(layout, key, default):
    return next((s.split("=")[1] for s in layout.settings.split() if s.startswith(key + "=")), default)


def formula(layout, gpus):
    """Share of a step that a pipeline waits; None: the layout is none, or has no closed formula."""
    p = int(setting(layout, "parallel.pp", 1))
    others = int(setting(layout, "parallel.tp", 1)) * int(setting(layout, "parallel.cp", 1)) * p
    if p == 1 or others > gpus:
        return None
    m = layout.rows // (gpus // others) // int(setting(layout, "s.rows_per_micro_batch", 1))
    parts = {"1f1b": 1, "interleaved": 2, "zb-h1": 3}.get(setting(layout, "parallel.schedule", "1f1b"))
    return (p - 1) / (parts * m + p - 1) if parts else 0.0


def measure(layout, options):
    rows = measured_run.rows_file(options.work, layout.rows * (options.steps + 2), f"--text --tokens {layout.seq_len}")
    settings = [f"model.path={options.model}", f"data.sets.rows.path={rows}", f"data.cache={options.work}/packs",
                f"stages.0.seq_len={layout.seq_len}", f"stages.0.rows_per_step={layout.rows}", f"stages.0.steps={options.steps}"]
    settings += [s.replace("s.", "stages.0.", 1) if s.startswith("s.") else s for s in layout.settings.split()] + options.set
    bubble = formula(layout, options.gpus)
    if bubble is not None:
        settings.append(f"log.profile_step={options.steps}")
    run = measured_run.train(CONFIG, options.gpus, settings, options.work, f"layout_{layout.name}", options.limit)
    result = {"layout": layout.name, "command": run.command, "seconds": round(run.seconds)}
    if run.error:
        return result | {"error": run.error}
    result |= measured_run.figures(run, options.gpus, run.steps[2:] or run.steps)
    result |= {"formula": bubble, "step_s_planned": run.plan.get("step_s_planned"), "peak_gib_planned": run.plan.get("memory_peak_gib_planned"),
               "peaks_gib": run.plan.get("memory_peak_gib", [run.steps[-1]["memory_peak_gib"]])}
    times = [times for trace in run.traces() if (times := gpu_trace.times_of(gpu_trace.events_of(trace)))]
    if times:  # waiting for others is idleness as well
        result["idle_of_stages"] = [(t["idle_ms"] + t["exposed_ms"]) / t["span_ms"] for t in times]
        result["idle"] = statistics.mean(result["idle_of_stages"])
    if run.diagram():
        ranks = pipeline_waits.read(run.diagram())
        result |= {"bubble": pipeline_waits.bubble(ranks), "update": pipeline_waits.update(ranks)}
    return result


def table_line(r):
    if "error" in r:
        return f"| {r['layout']} | failed: {r['error'].splitlines()[0][:60]} |" + " |" * 11
    share = lambda x: "" if x is None else f"{100 * x:.1f} %"  # noqa: E731
    planned = r["step_s_planned"]
    cells = [f"{r['tokens_per_s_per_gpu']:,.0f}", f"{r['tflops_per_gpu']:.0f}", share(r.get("idle")), share(r.get("bubble")), share(r["formula"]), share(r.get("update")), f"{r['step_s']:.3f}"]
    cells += [f"{planned:.3f}", f"{100 * (planned / r['step_s'] - 1):+.1f} %"] if planned else ["", ""]
    worst = max(range(len(r["peaks_gib"])), key=lambda i: r["peaks_gib"][i])
    cells.append(f"{r['peaks_gib'][worst]:.1f}")
    if r["peak_gib_planned"]:
        errors = [100 * (p / m - 1) for p, m in zip(r["peak_gib_planned"], r["peaks_gib"])]
        cells += [f"{r['peak_gib_planned'][worst]:.1f}", f"{max(errors, key=abs):+.1f} %"]
    else:
        cells += ["", ""]
    return f"| {r['layout']} | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", nargs="*", help=", ".join(layout.name for layout in LAYOUTS))
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--model", help="a folder of cluster/bench/make_hf_folder.py; made where it is missing (default: WORK/8b)")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no layout is begun")
    parser.add_argument("--limit", type=float, default=120, help="seconds of one layout")
    parser.add_argument("--seq-len", type=int, help="tokens of a row, for all layouts")
    parser.add_argument("--rows", type=int, help="of a step, for all layouts")
    measured_run.add_common_options(parser)
    options = parser.parse_args()
    layouts = [on(options.gpus, x) for x in LAYOUTS if options.gpus > 3 or "H" not in x.name]  # half of two GPUs is no axis
    chosen = [x for x in layouts if not options.layout or any(fnmatch.fnmatch(x.name, pattern) for pattern in options.layout)]
    if options.seq_len:
        chosen = [dataclasses.replace(x, seq_len=options.seq_len) for x in chosen]
    if options.rows:
        chosen = [dataclasses.replace(x, rows=options.rows) for x in chosen]
    if not chosen:
        parser.error(f"got {' '.join(options.layout)}; expected some of {', '.join(x.name for x in layouts)}")
    measured_run.prepare(options)
    options.model = os.path.abspath(options.model or os.path.join(options.work, "8b"))
    shape = os.path.basename(options.model)
    measured_run.on_first_use(options.model, "make_hf_folder.py", shape if shape in ("2b", "4b") else "8b", "FOLDER")
    began, results, left = time.time(), [], []
    for layout in chosen:
        if time.time() - began > options.budget:
            left.append(layout.name)
            continue
        result = measure(layout, options)
        results.append(result)
        measured_run.keep(results, options.json)
        if "error" in result:
            print(f"{layout.name}: {result['error']}", flush=True)
        print(table_line(result), json.dumps({k: v for k, v in result.items() if k not in ("command", "error")}), flush=True)
    print(f"\n{measured_run.hardware()}; {options.gpus} GPUs; {os.path.basename(options.model)}; {options.steps} steps, median after the second; "
          "memory: libtorch's peak of the fullest rank, error of the worst rank")
    print("| layout | tok/s per GPU | TFLOP/s | idle | bubble | formula | update | step s | planned | error | peak GiB | planned | error |\n" + "|---" * 13 + "|")
    print("\n".join(map(table_line, results)))
    if left:
        print(f"not begun within {options.budget:.0f} s: {' '.join(left)}")
    return any("error" in result for result in results)


if __name__ == "__main__":
    sys.exit(main())
