"""A rank that does not come, stops, or dies ends the job in time, with one error that names group, operation, number and rank and with
the documented exit code, never in a hang.   usage: faults.py MPIEXEC FAULT_PROBE mpi|nccl RANKS"""
import re
import subprocess
import sys
import time

TIMEOUT_S = {"mpi": 4, "nccl": 10}  # the configured wait; more than the first use of a GPU takes
SLACK_S = 30  # start of the processes, the first use of a GPU and the end


def main():
    mpiexec, probe, backend, ranks = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    wait_s = TIMEOUT_S[backend]
    last = ranks - 1
    name = "tp[" + " ".join(str(rank) for rank in range(ranks)) + "]"
    late = rf"got no answer from world ranks \[[\d, ]*{last}\] in {wait_s} s, expected them to arrive"
    only = rf"got no answer from world ranks \[{last}\] in {wait_s} s, expected them to arrive"  # the others have come
    text = {"absent": rf"all_reduce: {only}; group {re.escape(name)}, operation 1, 1000 Float, {backend.upper()}; ",
            "stall": rf"all_reduce: {only}; group {re.escape(name)}, operation 4, 1000 Float, {backend.upper()}; ",
            "take": rf"(take|offer|all_reduce): {late}; group {re.escape(name)}, operation [124], 1000 Float, {backend.upper()}; ",
            "recv": rf"(recv|all_reduce): {late}; group {re.escape(name)}, operation [14], 1000 Float, {backend.upper()}; "}
    failures = 0
    # --enable-recovery: mpirun leaves the others alone when one is killed, so that they must find it out themselves.
    for mode, options in [("absent", []), ("stall", []), ("take", []), ("recv", []), ("kill", []), ("kill", ["--enable-recovery"])]:
        began = time.time()
        command = [mpiexec, *options, "-np", str(ranks), probe, backend, mode, str(wait_s)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s + 4 * SLACK_S)
            code, output = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            code, output = None, str(error.stdout) + str(error.stderr)
        took = time.time() - began
        ok = code is not None and took <= wait_s + SLACK_S
        if mode in text:
            ok = ok and code == 75 and re.search(text[mode], output) is not None
        else:
            named = re.search(rf"group {re.escape(name)}, operation \d+, 1000 Float, {backend.upper()}; ", output) is not None
            # Between hosts (NCCL_HOSTID) a rank may see its connection break before mpirun sees the kill; on one host nobody does.
            broke = code == 75 and named and "remote process exited or there was a network error" in output
            ok = ok and (named if options else code == 137 or broke)  # mpirun's own code is 0 with options
        print(f"{'ok  ' if ok else 'FAIL'} {backend} {mode} {' '.join(options)}: code {code} after {took:.1f} s")
        if not ok:
            failures += 1
            print(output[-3000:])
        else:
            print("".join(f"       {line}\n" for line in output.split("\n") if "got " in line)[:600], end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
