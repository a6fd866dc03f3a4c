"""The whole table of cluster/bench/cpu_slice.md:   python3 cluster/bench/cpu_slice > cluster/bench/cpu_slice.md

Ours beside the peer, in turn on the same cores. --lock FILE is held (as flock(1) holds it) while something is measured, up to four minutes at a time."""
import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import data
import run_costs
import steps
from ours import BUILD, ROOT

PARTS = {"steps": ("Step time", steps.part), "data": ("Data", data.part), "start": ("From the command to the first step", run_costs.start_part),
         "checkpoint": ("What a checkpoint costs", run_costs.checkpoint_part)}


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def cpu_name():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    field = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in reversed(lines) if ":" in line}
    widest = next((f for f in ("avx512f", "avx2") if f in field.get("flags", "").split()), "baseline")
    return f"{field.get('model name')} (family {field.get('cpu family')}, model {field.get('model')}), {lines.count('')} cores, {widest}"


def header():
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) / 2**20
    packages = ("torch", "transformers", "tokenizers", "torchvision", "pillow")
    changed = output("git", "status", "--porcelain", "--untracked-files=no")
    yield "# Speed of the CPU slice"
    yield ""
    yield "Written by `. launch/env.sh; python3 cluster/bench/cpu_slice > cluster/bench/cpu_slice.md`; what limits each row is said at the end."
    yield ""
    yield f"* {datetime.date.today()}, commit {output('git', 'rev-parse', '--short', 'HEAD')}{' with changes' if changed else ''}"
    yield f"* {cpu_name()}, {memory:.0f} GiB, {platform.platform()}"
    yield f"* {', '.join(f'{p} {importlib.metadata.version(p)}' for p in packages)}; Python {platform.python_version()}"
    yield f"* {output(str(BUILD / 'launch/trainer'), '--version').splitlines()[0]}; {output('g++', '--version').splitlines()[0]}; {output('mpirun', '--version').splitlines()[0]}"


def show(lines):
    for line in lines:
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cases", nargs="*", help="of the steps part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--peer-steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lock")
    options = parser.parse_args()
    show(header())
    with tempfile.TemporaryDirectory(prefix="hanok-bench-") as scratch:
        for name in options.only:
            title, part = PARTS[name]
            folder = pathlib.Path(scratch) / name
            folder.mkdir()
            show(["", f"## {title}"])
            show(part(folder, options))
            show(["", f"Load average at the end of this part, its own threads included: {os.getloadavg()[1]:.1f} over five minutes."])
    show(["", pathlib.Path(__file__).with_name("limits.md").read_text().rstrip()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
