"""What a run costs beside its steps: the way from the command to the first step, and checkpoints."""
import json
import pathlib
import shutil
import subprocess
import sys
import time

import steps
from ours import ENV, PEER_ENV, ROOT, TOKENIZER, command, locked, median, run, write_config, write_conversations

DEMO = {"base": str(ROOT / "configs/model/qwen3vl_demo.yaml"), "tokenizer": TOKENIZER}
LARGE = {**steps.SMALL, "tokenizer": TOKENIZER,
         "decoder": {**steps.SMALL["decoder"], "hidden": 512, "ffn": 1536, "heads": 8, "kv_heads": 4, "head_dim": 64, "mrope_section": [12, 10, 10]}}
DEFAULT_SAVE_EVERY = 100


def demonstration(folder):
    data = f"{folder}/train.jsonl"
    write_conversations(data, list(steps.digits()))
    return data


def first_step_s(config, ranks):
    """Seconds from the command to the line of the first step, which is written when the step has ended."""
    out = pathlib.Path(json.loads(pathlib.Path(config).read_text())["out"])
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    process = subprocess.Popen(command(ranks, "--config", config), env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = out / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.stat().st_size > 0):
        time.sleep(0.005)
    seconds = time.monotonic() - began
    if process.wait() != 0:
        raise SystemExit(f"trainer: exit {process.returncode}; {config}")
    return seconds


def peer_first_step_s(weights, data, threads):
    """The same of the peer, from the start of Python to the end of its first step on padded batches."""
    script = pathlib.Path(__file__).with_name("peer_steps.py")
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, str(script), weights, data, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, env=PEER_ENV)
    process.stdout.readline()
    process.stdin.write(json.dumps({"mode": "padded", "steps": 1, "micro_batches": 2, "seq_len": steps.SEQ_LEN, "lr": 1e-3}) + "\n")
    process.stdin.close()
    process.stdout.readline()
    seconds = time.monotonic() - began
    process.wait()
    return seconds


def bare_s(ranks):
    """Loading libtorch and MPI, and ending: `trainer --version`."""
    began = time.monotonic()
    subprocess.run(command(ranks, "--version"), env=ENV, cwd=ROOT, capture_output=True, check=True)
    return time.monotonic() - began


def start_part(folder, options):
    data = demonstration(folder)
    few = f"{folder}/few.jsonl"
    write_conversations(few, steps.samples_of_one_step(TOKENIZER, steps.digits()))
    stage = {"seq_len": steps.SEQ_LEN, "rows_per_step": steps.ROWS, "rows_per_micro_batch": steps.MICRO_ROWS, "steps": 1}
    config = write_config(folder, "start", DEMO, stage, data)
    weights = steps.start_weights(folder, "start", DEMO, few)
    run(config)  # packs the data
    yield "The demonstration from packed data and random weights, files in the page cache; until the line of the first step is written, the step"
    yield "included. Bare: `trainer --version`, which loads libtorch and MPI and ends. Peer: imports, weights, processing of the 72 samples of one step."
    yield ""
    yield "| start | seconds | of which bare | peer (1 process) |"
    yield "|---|---|---|---|"
    whole, bare, peer = {}, {}, []
    ways = {"`trainer`": 0, "`mpirun -np 1 trainer`": 1, "`mpirun -np 2 trainer`": 2}
    with locked(options.lock):
        for _ in range(options.rounds):
            for name, ranks in ways.items():
                whole.setdefault(name, []).append(first_step_s(config, ranks))
                bare.setdefault(name, []).append(bare_s(ranks))
            peer.append(peer_first_step_s(weights, few, options.threads))
    for name in ways:
        yield f"| {name} | **{median(whole[name]):.2f}** | {median(bare[name]):.2f} | {median(peer):.2f} |"


def arrivals(config):
    """The lines of a run and when each was written: between two of them lies all that a step costs, whatever counts it."""
    out = pathlib.Path(json.loads(pathlib.Path(config).read_text())["out"])
    shutil.rmtree(out, ignore_errors=True)
    process = subprocess.Popen(command(1, "--config", config), env=ENV, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, text, times = out / "metrics.jsonl", b"", []
    while process.poll() is None:
        if path.exists():
            text = path.read_bytes()
            times += [time.monotonic()] * (text.count(b"\n") - len(times))
        time.sleep(0.01)
    if process.returncode != 0:
        raise SystemExit(f"trainer: exit {process.returncode}; {config}")
    return [json.loads(line) for line in path.read_text().splitlines()][: len(times)], times


def cost_of_saving(lines, times, every):
    """Of each save: the stall before the next step, and all the time that the interval took beyond undisturbed steps, seconds; and an
    undisturbed step: those of the second half of an interval."""
    gaps = {line["step"]: after - before for line, before, after in zip(lines[1:], times, times[1:])}
    quiet = median([gap for step, gap in gaps.items() if step > every // 2 and (step - 1) % every >= every // 2])
    saves = range(every, lines[-1]["step"] - every // 2, every)
    stalls = [next(line["checkpoint_stall_s"] for line in lines if line["step"] == save + 1) for save in saves]
    costs = [sum(gaps[save + i] - quiet for i in range(1, every // 2 + 1)) for save in saves]
    return stalls, costs, quiet


def checkpoint_part(folder, options):
    data = demonstration(folder)
    shapes = {
        "demonstration": (DEMO, {"seq_len": 1024, "rows_per_step": 4, "rows_per_micro_batch": 2, "steps": 81}, 20),
        "hidden 512, 8 layers": (LARGE, {"seq_len": 1024, "rows_per_step": 1, "steps": 81}, 20),
    }
    yield f"Saves in the background while training goes on, 1 rank, {options.threads} threads; medians over the saves of one run after the first,"
    yield "which allocates its host copy. Whole cost: what the steps of an interval take beyond undisturbed ones, by the clock: stall, report, and"
    yield f"steps beside the writer. Share: of the default interval of {DEFAULT_SAVE_EVERY} steps."
    yield ""
    yield "| model | bytes of a checkpoint | step, ms | stall, ms (first save) | whole cost, ms (first save) | share of the interval |"
    yield "|---|---|---|---|---|---|"
    for number, (name, (model, stage, every)) in enumerate(shapes.items()):
        config = write_config(folder, f"save{number}", model, stage, data, threads=options.threads, save__every=every, save__keep=1)
        out = folder / f"run-save{number}"
        with locked(options.lock):
            lines, times = arrivals(config)
        size = sum(f.stat().st_size for f in next((out / "checkpoints/all").iterdir()).iterdir())
        shutil.rmtree(out)
        stalls, costs, quiet = cost_of_saving(lines, times, every)
        yield (f"| {name} | {size / 1e6:,.0f} MB | {1e3 * quiet:.0f} | {1e3 * median(stalls[1:]):.0f} ({1e3 * stalls[0]:.0f}) | "
               f"{1e3 * median(costs[1:]):.0f} ({1e3 * costs[0]:.0f}) | **{100 * median(costs[1:]) / (DEFAULT_SAVE_EVERY * quiet):.2f} %** |")
