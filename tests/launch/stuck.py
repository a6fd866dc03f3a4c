"""A rank that hangs (it is stopped in the middle of training): the others end in the configured time, with an error that names group,
operation, number and the rank that did not come, and with the code of a lost rank.   usage: stuck.py [cpu|cuda] [RANKS]"""
import os
import re
import signal
import sys
import time

from harness import expect, make_case, ranks_of, remove, start

WAIT_S = 10
STAGE = {"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 100000}


def step_lines(folder):
    path = f"{folder}/run/metrics.jsonl"
    return open(path, encoding="utf-8").read().count('"step"') if os.path.exists(path) else 0


def main():
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    ranks = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    for layout in ({"parallel": {"dp": ranks}}, {"parallel": {"tp": ranks}}, {"parallel": {"pp": 2, "dp": ranks // 2}}):
        folder, config = make_case(**{"device": device, "log.stall_timeout_s": WAIT_S, "stages": [STAGE], **layout})
        with open(f"{folder}/log", "ab") as log:
            process = start(ranks, "--config", config, log=log)
            deadline = time.time() + 120
            while step_lines(folder) < 5 and process.poll() is None and time.time() < deadline:
                time.sleep(0.05)
            said = open(f"{folder}/log", encoding="utf-8", errors="replace").read()
            expect(step_lines(folder) >= 5, f"{layout}: no steps in two minutes\n{said[-3000:]}")
            victim = sorted(ranks_of(config))[-1]  # started last: the last rank
            os.kill(victim, signal.SIGSTOP)
            stopped = time.time()
            try:
                code = process.wait(WAIT_S + 40)
            finally:
                for left in ranks_of(config):
                    os.kill(left, signal.SIGKILL)
        took = time.time() - stopped
        said = open(f"{folder}/log", encoding="utf-8", errors="replace").read()
        errors = re.findall(r"\w+: got no answer from world ranks .*", said)
        print(f"{device} {layout['parallel']}: code {code} after {took:.1f} s: {errors[:1]}")
        expect(code == 75, f"code {code} instead of 75\n{said[-3000:]}")
        expect(took <= WAIT_S + 30, f"the others took {took:.1f} s")
        named = re.search(rf"got no answer from world ranks \[[\d, ]*\b{ranks - 1}\b[\d, ]*\] in {WAIT_S} s, expected them to arrive; "
                          rf"group \w+\[[\d ]+\], operation \d+, \d+ \w+, {'NCCL|MPI' if device == 'cuda' else 'MPI'}", said)
        expect(named, f"no error that names rank {ranks - 1}\n{said[-3000:]}")
        remove(folder)
    print("stuck ranks: done")


if __name__ == "__main__":
    main()
