"""evaluate and export beside a training that keeps only its newest checkpoint, and two exports to one folder at once."""
import os
import subprocess
import time

from harness import ENV, ROOT, command, committed, expect, make_case, model_hash, remove, run, start

STAGES = [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 100000}]
READERS = 6


def settings_of(config):
    return ["--config", config, "--set", "eval.rows=1"]


def read_beside_training(folder, config):
    read = set()
    with open(f"{folder}/log", "ab") as log:
        training = start(2, "--config", config, log=log)
        while not committed(folder):
            expect(training.poll() is None, "the training ended before it saved anything; see the log")
            time.sleep(0.05)
        for i in range(READERS):
            what = ["evaluate"] if i % 2 == 0 else ["export", "--output", f"{folder}/exported{i}"]
            done = run(1 + i % 3 % 2, *what, *settings_of(config), check=False)
            text = done.stdout + done.stderr
            expect(done.returncode == 0, f"{what} beside a training ended with {done.returncode}\n{text[-3000:]}")
            read.add(next(line for line in text.splitlines() if "weights from" in line))
        expect(training.poll() is None, "the training ended beside readers; see the log")
        training.terminate()
        training.wait(60)
    print(f"{READERS} readers beside a training: {len(read)} checkpoints")
    expect(len(read) > 1, f"the training saved nothing new: {read}")


def export_twice_at_once(folder, config):
    words = command(1, "export", "--output", f"{folder}/both", *settings_of(config))
    both = [subprocess.Popen(words, env=ENV, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[0], process.returncode) for process in both]
    codes = sorted(code for _, code in ends)
    expect(codes in ([0, 0], [0, 6]), f"two exports to one folder ended with {codes}\n{ends}")
    run(1, "export", "--output", f"{folder}/one", *settings_of(config))
    expect(model_hash(f"{folder}/both") == model_hash(f"{folder}/one"), "the folder that two exports wrote has other weights")
    expect(sorted(os.listdir(f"{folder}/both")) == sorted(os.listdir(f"{folder}/one")), "the folder that two exports wrote has other files")
    expect(not os.path.exists(f"{folder}/both.tmp"), "an unfinished folder is left")
    print(f"two exports to one folder: exit codes {codes}")


def main():
    folder, config = make_case(stages=STAGES, save={"every": 1, "keep": 1, "export_model": False, "best": False})
    read_beside_training(folder, config)
    export_twice_at_once(folder, config)
    remove(folder)


if __name__ == "__main__":
    main()
