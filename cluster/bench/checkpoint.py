"""What a checkpoint of the full state costs a training under way, and how soon a killed one trains again.
usage: checkpoint.py [--gpus 8] [--shape 8b] [--work FOLDER] [--every 25] [--saves 2] [--json FILE] [--limit SECONDS] [--set KEY=VALUE]
Data parallel with ZeRO-1, rows of 4,096 tokens as beside_peers.py's 8b_4k. The checkpoints lie under --work: on a file system in memory,
such as /dev/shm, the figures are without a disk.
Stall: the time that a save kept the loop waiting, and what the steps took longer than the median while it was written behind them.
Resume: from the start of mpirun until the first step is finished."""
import argparse
import dataclasses
import datetime
import glob
import json
import os
import re
import statistics
import sys
import time

import measured_run

CONFIG = "cluster/bench/beside_peers.yaml"
HEADER = ("| state | GPUs | GB | step s | waiting s | steps longer s | stall s | written behind s | GB/s | start to first step done s | of it: verified "
          "| loaded | first step |\n" + "|---" * 13 + "|")


@dataclasses.dataclass
class Line:
    time: float  # of the day, seconds since the epoch
    text: str


def log_lines(log):
    """Lines of the program's log with their times."""
    found = []
    with open(log, encoding="utf-8", errors="replace") as text:
        for line in text:
            match = re.match(r"[IWE](\d{8} [\d:]+\.\d+) +\d+ [^\]]*\] (.*)", line)
            if match:
                found.append(Line(datetime.datetime.strptime(match[1], "%Y%m%d %H:%M:%S.%f").timestamp(), match[2]))
    return found


def memory_free():
    """Bytes that programs here may still take."""
    with open("/proc/meminfo", encoding="utf-8") as text:
        free = next(int(line.split()[1]) * 1024 for line in text if line.startswith("MemAvailable"))
    try:
        limit, used = (open(f"/sys/fs/cgroup/memory.{name}", encoding="utf-8").read().strip() for name in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - int(used))


def is_in_memory(folder):
    with open("/proc/mounts", encoding="utf-8") as text:
        mounts = [line.split()[1:3] for line in text]
    inside = [(len(point), kind) for point, kind in mounts if os.path.join(folder, "").startswith(os.path.join(point, ""))]
    return max(inside)[1] in ("tmpfs", "ramfs")


def saves_with_room(options, model):
    """How many saves there is room for: each is written before the one before it is removed, from a copy in the host's memory."""
    weights = sum(os.path.getsize(path) for path in glob.glob(os.path.join(model, "*.safetensors")))
    state = 7 * weights  # bf16 weights; f32 master values and two moments
    stat = os.statvfs(options.work)
    copy = state + 4e9 * options.gpus  # each rank wants 4 GiB to stay free
    disk, memory = stat.f_bavail * stat.f_frsize, memory_free() - copy
    room = min(disk, memory) if is_in_memory(options.work) else disk
    fits = int(room // (1.02 * state)) if memory > 0 else 0
    if fits < 1:
        sys.exit(f"checkpoint: got {disk / 1e9:.0f} GB free in {options.work} and {(memory + copy) / 1e9:.0f} GB of memory, expected "
                 f"{state / 1e9:.0f} GB there and {copy / 1e9:.0f} GB of memory{' more' if is_in_memory(options.work) else ''} for the copy; "
                 f"state of {options.shape}; another --work, or --shape 4b")
    if fits < min(2, options.saves):
        print(f"room for one checkpoint of {state / 1e9:.0f} GB only: one save", flush=True)
        return 1
    return options.saves


def saves_of(run, every):
    """Figures of each save: what it kept the loop, what the steps behind it took longer, bytes and seconds."""
    steps = {s["step"]: s for s in run.steps}
    saves = []
    for line in log_lines(run.log):
        match = re.search(r"checkpoint (\S+) is complete: ([\d.]+) GB after ([\d.]+) s", line.text)
        if not match:
            continue
        folder, seconds = match[1], float(match[3])
        manifest = os.path.join(folder, "manifest.json")
        if os.path.exists(manifest):  # the last one: ranks look for the end once a step, its file says when it was
            seconds = os.path.getmtime(manifest) - (line.time - seconds)
        step, behind, passed = int(folder.rsplit("_", 1)[1]), [], 0.0  # behind: steps that ran while it was written
        for number in range(step + 1, len(steps) + 1):
            if passed >= seconds:
                break
            behind.append(number)
            passed += steps[number]["step_s"] + steps[number]["checkpoint_stall_s"]
        saves.append({"step": step, "gb": float(match[2]), "seconds": seconds, "behind": behind,
                      "waiting_s": steps[step + 1]["checkpoint_stall_s"]})
    touched = {number for save in saves for number in save["behind"]}
    quiet = [s["step_s"] for s in run.steps[3:] if s["step"] not in touched]
    if not quiet:
        sys.exit(f"checkpoint: got no step without a save under way, expected some; saves took {saves}; raise --every (now {every})")
    step_s = statistics.median(quiet)
    for save in saves:
        save["longer_s"] = sum(steps[number]["step_s"] - step_s for number in save["behind"])
        save["stall_s"] = save["waiting_s"] + save["longer_s"]
    return step_s, saves


def cut_metrics(folder, step):
    """As the trainer does when it goes on: so that the next line is that of the first step after the start."""
    path = os.path.join(folder, "metrics.jsonl")
    lines = [line for line in measured_run.lines_of(folder) if line["step"] <= step]
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


def resume(run, options, settings, step):
    """Starts again for one step. -> seconds from the start of the process; the loss of that step without and with the restart"""
    cut_metrics(run.folder, step)
    log = os.path.join(options.work, "checkpoint_resume.log")
    before = len(measured_run.lines_of(run.folder))
    command = measured_run.command_of(CONFIG, options.gpus, [*settings, f"stages.0.steps={step + 1}", "save.every=0", f"out={run.folder}"])
    began, first = time.time(), None
    process = measured_run.start(command, log)
    try:
        while process.poll() is None and time.time() - began < options.limit:
            if first is None and len(measured_run.lines_of(run.folder)) > before:
                first = time.time()
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            measured_run.kill_all(process)
    if first is None:
        return {"error": f"{measured_run.end_text(process.poll(), options.limit)}: {measured_run.cause_in(log)}"}
    at = {key: next((line.time for line in log_lines(log) if key in line.text), None) for key in ("goes on from", "stage train (1 of 1)")}
    if None in at.values():
        return {"error": f"got no word of going on from a checkpoint, expected it; {log}"}
    verified, loaded = at.values()
    losses = [next(s["loss"] for s in run.steps if s["step"] == step + 1), measured_run.lines_of(run.folder)[before]["loss"]]
    return {"step": step, "losses": losses, "seconds": first - began, "verified_s": verified - began, "loaded_s": loaded - verified,
            "first_step_s": first - loaded}


def table_line(result, save):
    back = result["resume"]
    cells = ["later save" if save is not result["saves"][0] else "first save", save["gb"], result["step_s"], save["waiting_s"], save["longer_s"],
             save["stall_s"], save["seconds"], save["gb"] / save["seconds"]]
    text = [f"{result['shape']}, {cells[0]} | {result['gpus']} | {cells[1]:.1f}"] + [f"{x:.3f}" for x in cells[2:6]]
    text += [f"{cells[6]:.1f}", f"{cells[7]:.1f}"]
    if "seconds" in back:
        text += [f"{back[key]:.1f}" for key in ("seconds", "verified_s", "loaded_s", "first_step_s")]
    else:
        text += ["failed", "", "", ""]
    return "| " + " | ".join(text) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--shape", default="8b", help="of make_hf_folder.py")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--every", type=int, default=25, help="steps from save to save, the first included")
    parser.add_argument("--saves", type=int, default=2)
    parser.add_argument("--limit", type=float, default=400, help="seconds of one start")
    measured_run.add_common_options(parser)
    options = parser.parse_args()
    if options.every < 5 or options.saves < 1:
        parser.error(f"got --every {options.every} --saves {options.saves}; expected 5 or more, and 1 or more")
    measured_run.prepare(options)
    model = measured_run.model_folder(options.work, options.shape)
    saves = saves_with_room(options, model)
    rows = measured_run.rows_file(options.work, 400, f"--text --tokens {options.seq_len}")
    settings = [f"model.path={model}", f"data.sets.rows.path={rows}", f"data.cache={options.work}/packs", f"stages.0.seq_len={options.seq_len}",
                "stages.0.rows_per_micro_batch=2", f"stages.0.rows_per_step={4 * options.gpus}", "save.keep=1", *options.set]
    # One step less than the next save, so that only whole saves are measured.
    length = [f"stages.0.steps={options.every * (saves + 1) - 1}", f"save.every={options.every}"]
    run = measured_run.train(CONFIG, options.gpus, settings + length, options.work, "checkpoint", options.limit)
    if run.error:
        sys.exit(f"{run.command}\n{run.error}")
    step_s, found = saves_of(run, options.every)
    if len(found) < saves:
        sys.exit(f"checkpoint: got {len(found)} finished saves, expected {saves}; {measured_run.cause_in(run.log)}")
    result = {"shape": options.shape, "gpus": options.gpus, "command": run.command, "step_s": step_s, "saves": found, "resume": {}}
    measured_run.keep(result, options.json)
    result["resume"] = resume(run, options, settings, found[-1]["step"])
    measured_run.keep(result, options.json)
    print(f"\n{measured_run.hardware()}; checkpoints in {'memory' if is_in_memory(options.work) else 'files'}; {options.gpus} GPUs, dp, ZeRO-1")
    print(HEADER)
    for save in found:
        print(table_line(result, save))
        if len(save["behind"]) >= options.every:
            print(f"the save of step {save['step']} took {len(save['behind'])} steps, so that the next one waited for it: raise --every")
    if "error" in result["resume"]:
        print(f"resume: {result['resume']['error']}")
    print(json.dumps(result))
    return "error" in result["resume"]


if __name__ == "__main__":
    sys.exit(main())
