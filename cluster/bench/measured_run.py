"""What the measuring scripts of this folder share: runs of the trainer with a time limit, their figures or why they failed; models and rows
made on first use; results kept as they come."""
import collections
import contextlib
import dataclasses
import datetime
import glob
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def descendants(root):
    """Process ids below `root`: mpirun's wrapper, mpirun and the ranks are each in a group or session of their own."""
    children = collections.defaultdict(list)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            children[int(stat.read().rpartition(")")[2].split()[1])].append(int(pid))
    found = children[root]
    for pid in found:  # grows while it is walked
        found += children[pid]
    return found


def is_alive(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def kill_all(process):
    """Ends a program and all that it started. SIGTERM would be a wish to save and end, which may take minutes."""
    started = descendants(process.pid)
    for pid in [*started, process.pid]:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for _ in range(100):  # a rank gives its GPU's memory back on its way out
        if not any(is_alive(pid) for pid in started):
            return
        time.sleep(0.2)


def start(command, log):
    """The program under way from the repository's root; its output goes to the file `log`."""
    with open(log, "w", encoding="utf-8") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)


def call(command, log, limit):
    """-> exit code; None: it was still running after `limit` seconds, and was killed with all that it had started."""
    try:
        process = start(command, log)
    except FileNotFoundError:
        with open(log, "w", encoding="utf-8") as out:
            out.write(f"{command[0]}: got no such program, expected it on PATH or in the build; . launch/env.sh, and build it\n")
        return 127
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            kill_all(process)


CAUSES = (r"E2\d{7} ", r"(?![IW]2\d{7} ).*\bgot\b.*\bexpected\b", r"(\[rank\d+\]: *)?[\w.]*(Error|Exception)\b")  # ranks, before the log, Python


def cause_in(log):
    """The first error that was said, or the end of what was."""
    with open(log, encoding="utf-8", errors="replace") as text:
        lines = text.read().splitlines()
    found = (line for pattern in CAUSES for line in lines if re.match(pattern, line))
    return next((line[:600] for line in found), "\n".join(line[:300] for line in lines[-3:]))


def end_text(code, limit):
    return f"still running after {limit:.0f} s" if code is None else f"exit {code}"


@dataclasses.dataclass
class Run:
    """A training that has ended. `error` is empty, or says why there are no figures."""
    command: str
    folder: str
    log: str
    seconds: float
    error: str
    steps: list  # lines of metrics.jsonl (trainer/README.md)
    plan: dict  # its line about the plan; empty: there is none

    def traces(self):
        """Files of the traced step, one of each pipeline stage; empty: none was asked for."""
        return sorted(glob.glob(os.path.join(self.folder, "trace_*.json")))

    def diagram(self):
        """File of the diagram of a pipeline, all its ranks; empty: there is none."""
        return next(iter(glob.glob(os.path.join(self.folder, "pipeline_*.json"))), "")

    def trace(self):
        """That of the first stage."""
        return next(iter(self.traces()), "")


def lines_of(folder):
    """Whole lines of a run folder's metrics.jsonl."""
    path = os.path.join(folder, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as text:
        return [json.loads(line) for line in text if line.endswith("\n")]


def command_of(config, gpus, settings):
    return ["mpirun", "-np", str(gpus), "trainer", "--config", config] + [word for setting in settings for word in ("--set", setting)]


def train(config, gpus, settings, work, name, limit):
    """Trains anew in WORK/runs/NAME under `config` and settings "key=value"; the log is WORK/NAME.log."""
    folder, log = os.path.join(work, "runs", name), os.path.join(work, f"{name}.log")
    shutil.rmtree(folder, ignore_errors=True)
    command = command_of(config, gpus, [*settings, f"out={folder}"])
    began = time.time()
    code = call(command, log, limit)
    seconds = time.time() - began
    lines = lines_of(folder)
    steps = [line for line in lines if line["kind"] == "step"]
    error = f"{end_text(code, limit)}, {len(steps)} steps: {cause_in(log)}" if code != 0 else "" if steps else "ended without a step"
    return Run(" ".join(command), folder, log, seconds, error, steps, next((line for line in lines if line["kind"] == "plan"), {}))


def figures(run, gpus, warm):
    """Medians over the steps `warm` of a run that has some; peak and losses over all."""
    middle = lambda field: statistics.median(s[field] for s in warm)  # noqa: E731
    return {"tokens_per_s_per_gpu": middle("tokens_per_s") / gpus, "tflops_per_gpu": middle("model_flops_per_s") / gpus / 1e12,
            "step_s": middle("step_s"), "peak_gib": max(s["memory_peak_gib"] for s in run.steps),
            "losses": [run.steps[0]["loss"], run.steps[-1]["loss"]],
            "data_wait": sum(s["data_wait_s"] for s in warm) / sum(s["step_s"] for s in warm), "fill": middle("fill")}


def on_first_use(folder, script, *arguments, limit=600):
    """Has a script of this folder make a folder that is missing. It gets its name when it is whole."""
    if os.path.exists(folder):
        return folder
    making, log = folder + ".making", folder + ".log"
    shutil.rmtree(making, ignore_errors=True)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    command = [sys.executable, os.path.join(HERE, script), *(making if word == "FOLDER" else word for word in arguments)]
    code = call(command, log, limit)
    if code != 0:
        sys.exit(f"{' '.join(command)}: {end_text(code, limit)}\n{cause_in(log)}")
    os.rename(making, folder)
    return folder


def model_folder(work, shape):
    return on_first_use(os.path.join(work, shape), "make_hf_folder.py", shape, "FOLDER")


def rows_file(work, samples, options):
    """`options` are those of make_rows.py, as one text."""
    folder = os.path.join(work, f"rows_{samples}_" + "_".join(options.replace("--", "").split()))
    return os.path.join(on_first_use(folder, "make_rows.py", "FOLDER", str(samples), *options.split()), "rows.jsonl")


def keep(results, path):
    """Writes all results so far: a call that is cut off leaves what it had."""
    if not path:
        return
    with open(path + ".new", "w", encoding="utf-8") as out:
        json.dump(results, out, indent=1)
    os.replace(path + ".new", path)


def hardware():
    import torch

    return f"{datetime.date.today()}; {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}; torch {torch.__version__}"


def add_common_options(parser):
    parser.add_argument("--work", default="bench", help="folder of models, rows, packs, runs and logs")
    parser.add_argument("--json", help="file of all figures, written after every row")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting of ours")


def prepare(options):
    options.work = os.path.abspath(options.work)
    os.makedirs(options.work, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that programs under way are ended as well
