"""SIGTERM, SIGUSR1 and SIGINT to mpirun, SIGTERM to one that forwards nothing, and SIGTERM to one rank: every rank saves the same step and
the job ends with 0 within 30 s; started again, it ends with the bits of an undisturbed run. A stop while data is packed, in an evaluation
or before MPI runs ends in order as well."""
import contextlib
import csv
import fcntl
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


def stopped(words, ranks, is_time, number=signal.SIGTERM, seconds=20):
    """Starts `words`, sends the signal to it when the time has come, and wants it to end in order. -> what it said"""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*(["mpirun", "-np", str(ranks)] if ranks else []), "trainer", *words], env=harness.ENV, stdout=log, stderr=log, cwd=harness.ROOT)
        deadline = time.time() + 60
        while not is_time(process):
            expect(time.time() < deadline and process.poll() is None, f"{words}: the moment to stop it did not come")
        process.send_signal(number)
        began = time.time()
        code = process.wait(120)
        log.seek(0)
        text = log.read().decode(errors="replace")
    name = f"{words[0]} on {ranks or 1} ranks"
    expect(code == 0, f"{name}: ended with {code}\n{text[-3000:]}")
    expect(time.time() - began <= seconds, f"{name}: took {time.time() - began:.1f} s")
    expect(text.count("stopped by SIG") == 1, f"{name}: no message about stopping, or several\n{text[-2000:]}")
    print(f"{name}: stopped in order in {time.time() - began:.1f} s")
    return text


def many_records(folder, times):
    """The training set so many times over, under other ids."""
    with open(f"{folder}/data/train.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    with open(f"{folder}/data/train.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *([f"{row[0]}_{k}", *row[1:]] for k in range(times) for row in rows)])
    return times * len(rows)


def stops_while_packing():
    """The pack command and a training that packs first: what is packed stays, and the next one goes on with it."""
    for words, ranks in [(["pack"], 0), (["pack"], 2), (["train"], 0), (["train"], 2)]:
        folder, config = make_case(**{"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 2}]})
        count = many_records(folder, 4000)

        def is_packing(_):
            names = os.listdir(f"{folder}/packs") if os.path.isdir(f"{folder}/packs") else []
            return any(len(os.listdir(f"{folder}/packs/{n}")) > 3 for n in names if n.startswith("train") and n.endswith(".parts"))
        stopped([*words, "--config", config], ranks, is_packing)
        kept = [n for n in os.listdir(f"{folder}/packs") if n.startswith("train")]
        expect(any(n.endswith(".parts") for n in kept) and not any(n.endswith((".h5", ".partial", ".tmp")) for n in kept), f"{kept} is left")
        expect(not ranks_of(config), "ranks are still running")
        if words == ["pack"] and ranks == 0:
            text = run(1, "pack", "--config", config).stderr
            expect(f"train: {count} samples" in text, f"the next pack did not come to an end\n{text[-2000:]}")
        remove(folder)


def stops_while_it_waits():
    """For another process that packs the same set, and cannot be called off."""
    folder, config = make_case()
    run(1, "pack", "--config", config)
    name = next(n for n in os.listdir(f"{folder}/packs") if n.startswith("train") and n.endswith(".lock"))
    os.remove(f"{folder}/packs/{name.replace('.lock', '.h5')}")
    with open(f"{folder}/packs/{name}", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words, ranks in [(["pack"], 0), (["train"], 2)]:
            began = time.time()
            text = stopped([*words, "--config", config], ranks, lambda _: time.time() > began + 5)
            expect("waiting for another process" in text, f"it did not wait\n{text[-2000:]}")
    remove(folder)


def stops_while_it_evaluates():
    folder, config = make_case(**{"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 2}]})
    run(2, "--config", config)
    many_records(folder, 40)
    sets = [word for name in ("train", "heldout") for word in ("--set", f"data.sets.{name}.path={folder}/data/train.csv")]
    run(1, "pack", "--config", config, *sets)
    for ranks in (0, 2):
        words = ["evaluate", "--config", config, *sets, "--set", "eval.shuffles=24", "--set", f"eval.dump={folder}/dump.jsonl"]
        began = time.time()
        stopped(words, ranks, lambda _: time.time() > began + 4)
        expect(not os.path.exists(f"{folder}/dump.jsonl"), "half an evaluation was written")
    remove(folder)


def stops_before_mpi_runs():
    """The signal that comes while MPI and the libraries start is obeyed when there is something to stop."""
    folder, config = make_case(**{"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 60}]})

    def is_caught_before_mpi(process):
        with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
            caught = next((int(line.split()[1], 16) for line in file if line.startswith("SigCgt")), 0)
        if not caught >> (signal.SIGTERM - 1) & 1:
            return False
        process.send_signal(signal.SIGSTOP)
        with open(f"/proc/{process.pid}/maps", encoding="utf-8") as file:
            is_early = "/mca_pml" not in file.read()
        with open(f"/proc/{process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        process.send_signal(signal.SIGCONT)
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        expect(is_early, "MPI has started before the signals are caught")
        expect(seconds < 0.25, f"libraries worked for {seconds:.2f} s before the signals are caught")
        return True
    text = stopped(["train", "--config", config], 0, is_caught_before_mpi)
    expect("saved" in text or "packed so far" in text, f"nothing is said of what is kept\n{text[-2000:]}")
    remove(folder)


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"signals: seed {seed}")
    scripts_that_start_each_other()
    stops_before_mpi_runs()
    stops_while_packing()
    stops_while_it_waits()
    stops_while_it_evaluates()
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
