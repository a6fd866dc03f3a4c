"""A GPU that is too small for the run: one error that says what held its memory by kind and names settings that fit, and the exit code
of a device. The allocator is allowed a part of the GPU.   usage: out_of_memory.py [RANKS]"""
import re
import sys

import harness
from harness import expect, make_case, remove, run


def main():
    ranks = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    # Wide enough that weights alone are a few hundred MiB, and that no cap cuts off the smallest workspace.
    folder, config = make_case(**{"device": "cuda", "model.decoder.hidden": 1024, "model.decoder.ffn": 8192, "model.decoder.layers": 12,
                                  "model.dtype": "auto"})
    whole = run(ranks, "--config", config, "--set", "stages.align.steps=2", "--set", "stages.all.steps=2")
    print(whole.stderr[-300:])
    for fraction in (0.001, 0.01, 0.02, 0.03, 0.04, 0.045):
        harness.ENV["PYTORCH_ALLOC_CONF"] = harness.ENV["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{fraction}"
        done = run(ranks, "--config", config, "--resume", "never", check=False)
        said = done.stderr + done.stdout
        print(f"fraction {fraction}: code {done.returncode}")
        if done.returncode == 0:
            continue
        expect(done.returncode == 76, f"code {done.returncode} instead of 76\n{said[-3000:]}")
        lines = [line for line in said.split("\n") if "GPU memory: got no room for another" in line]
        expect(1 <= len(lines) <= ranks, f"{len(lines)} errors instead of one a rank\n{said[-3000:]}")
        print("  " + lines[0])
        for part in ("expected it within", "held: ", "rank ", "stage "):
            expect(part in lines[0], f"no {part!r} in\n{lines[0]}")
        expect(re.search(r"--set |take more GPUs", lines[0]), f"nothing to do is named in\n{lines[0]}")
        expect("activations" in lines[0] or "weights" in lines[0] or "tensors" in lines[0], f"no kind in\n{lines[0]}")
        expect("rank 0" in said or ranks > 1, said[-2000:])
    remove(folder)
    print("out of memory: done")


if __name__ == "__main__":
    main()
