"""SIGTERM, SIGUSR1 and SIGINT to mpirun, SIGTERM to one that forwards nothing, and SIGTERM to one rank: every rank saves the same step and
the job ends with 0 within 30 s; started again, it ends with the bits of an undisturbed run."""
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import harness
from harness import expect, make_case, model_hash, ranks_of, remove, run, start

# Ubuntu 24.04's mpirun catches SIGUSR1 and tells no rank of it (seen in a virtual machine).
DEAF = """#!/usr/bin/env bash
{real} "$@" <&0 &
child=$!
trap : USR1
trap 'kill -TERM $child' TERM
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""


def path_with_a_deaf_mpirun(folder):
    """PATH on which the next mpirun after Hanok's own keeps SIGUSR1 for itself."""
    own, *others = harness.ENV["PATH"].split(":")
    rest = [other for other in others if not is_wrapper(f"{other}/mpirun")]
    add_mpirun(f"{folder}/bin", DEAF.format(real=shutil.which("mpirun", path=":".join(rest))))
    return ":".join([own, f"{folder}/bin", *rest])


def is_wrapper(path):
    """Of this checkout, or of another one whose launch/env.sh the shell has read, too."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return b"The system's mpirun, with one difference" in file.read(200)
    return False


def add_mpirun(folder, text):
    os.makedirs(folder)
    with open(f"{folder}/mpirun", "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(f"{folder}/mpirun", 0o755)


def scripts_that_start_each_other():
    """A foreign mpirun that starts the next one on PATH, which is ours again."""
    with tempfile.TemporaryDirectory() as folder:
        own = harness.ENV["PATH"].split(":")[0]
        add_mpirun(f"{folder}/bin", f'#!/usr/bin/env bash\nexec "{own}/mpirun" "$@"\n')
        env = {**harness.ENV, "PATH": f"{own}:{folder}/bin:{harness.ENV['PATH']}"}
        done = subprocess.run(["mpirun", "-np", "1", "true"], env=env, capture_output=True, text=True, timeout=30)
        expect(done.returncode == 127 and "starts this script again" in done.stderr, f"ended with {done.returncode}\n{done.stderr[-2000:]}")


def wait_for_steps(folder, config, seconds):
    deadline = time.time() + 60
    path = f"{folder}/run/metrics.jsonl"
    while time.time() < deadline and not (os.path.exists(path) and os.path.getsize(path) > 0):
        time.sleep(0.02)
    time.sleep(seconds)


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"signals: seed {seed}")
    scripts_that_start_each_other()
    changes = {"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 60}]}
    calm, calm_config = make_case(**changes)
    run(2, "--config", calm_config)
    for number, target in [(signal.SIGTERM, "mpirun"), (signal.SIGUSR1, "mpirun"), (signal.SIGINT, "mpirun"), (signal.SIGTERM, "deaf mpirun"),
                           (signal.SIGTERM, "rank")]:
        folder, config = make_case(**changes)
        path = harness.ENV["PATH"]
        if target == "deaf mpirun":
            harness.ENV["PATH"] = path_with_a_deaf_mpirun(folder)
        with open(f"{folder}/log", "w+b") as log:
            process = start(2, "--config", config, log=log)
            harness.ENV["PATH"] = path
            wait_for_steps(folder, config, rng.uniform(0, 0.5))
            if target != "rank":
                process.send_signal(number)
            else:
                os.kill(rng.choice(ranks_of(config)), number)
            begin = time.time()
            code = process.wait(60)
            seconds = time.time() - begin
            log.seek(0)
            text = log.read().decode(errors="replace")
        name = signal.Signals(number).name
        expect(code == 0, f"{name} to {target}: ended with {code}\n{text[-3000:]}")
        expect(seconds <= 30, f"{name} to {target}: took {seconds:.1f} s")
        expect("stopped" in text and "saved" in text, f"{name} to {target}: no message about stopping\n{text[-2000:]}")
        expect(not ranks_of(config), "ranks are still running")
        run(2, "--config", config)
        expect(model_hash(f"{folder}/run/model") == model_hash(f"{calm}/run/model"), f"{name}: final weights differ from the undisturbed run")
        print(f"{name} to {target}: saved and ended with 0 in {seconds:.1f} s; resumed to the same bits")
        remove(folder)
    remove(calm)


if __name__ == "__main__":
    main()
