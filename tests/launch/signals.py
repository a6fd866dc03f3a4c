"""SIGTERM, SIGUSR1 and SIGINT to mpirun, and SIGTERM to one rank: every rank saves the same step and the job ends with 0 within
30 s; started again, it ends with the bits of an undisturbed run."""
import os
import random
import signal
import sys
import time

from harness import expect, make_case, model_hash, ranks_of, remove, run, start


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
    changes = {"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 60}]}
    calm, calm_config = make_case(**changes)
    run(2, "--config", calm_config)
    for number, target in [(signal.SIGTERM, "mpirun"), (signal.SIGUSR1, "mpirun"), (signal.SIGINT, "mpirun"), (signal.SIGTERM, "rank")]:
        folder, config = make_case(**changes)
        with open(f"{folder}/log", "w+b") as log:
            process = start(2, "--config", config, log=log)
            wait_for_steps(folder, config, rng.uniform(0, 0.5))
            if target == "mpirun":
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
