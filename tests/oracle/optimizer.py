"""AdamW and clipping against torch.optim.AdamW and torch.nn.utils.clip_grad_norm_: random shapes, hyperparameters, groups, frozen
parameters and rates that change every step; some gradients are not finite and must change nothing, and in some steps tower and
connector have none.
usage: optimizer.py PROBE [SEED]"""
import fnmatch
import json
import random
import subprocess
import sys
import tempfile
import time

import numpy
import torch

TOLERANCE = 1e-6  # of the norm of each parameter, after every step


def problem_of(rng):
    params = []
    for i in range(rng.randint(1, 8)):
        shape = [rng.randint(1, limit) for limit in rng.choice([[3000], [70, 40], [30, 6, 8]])]
        kind = rng.choice(["weight", "bias", "norm1.weight"])
        place = "" if i == 0 else rng.choice(["", "", "tower.", "connector."])
        params.append({"name": f"{place}part{i}.{kind}", "shape": shape, "trainable": i == 0 or rng.random() < 0.8})
    groups = [{"match": rng.choice(["part1.*", "part*.bias", "part[", "part3.weight", "**"]), "lr_scale": rng.choice([0.1, 1, 3]),
               "weight_decay": rng.choice([-1, 0, 0.3])} for _ in range(rng.randint(0, 3))]
    steps = rng.choice([1, 5, 60, 300])
    bad = {rng.randrange(steps) for _ in range(rng.choice([0, 0, 2]))}
    share = rng.choice([0, 0, 0.3, 1])
    return {
        "params": params, "bad": sorted(bad), "pictures": [rng.random() >= share for _ in range(steps)],
        "optimizer": {"beta1": rng.choice([0.8, 0.9, 0.95]), "beta2": rng.choice([0.95, 0.99, 0.999]), "eps": rng.choice([1e-8, 1e-6]),
                      "weight_decay": rng.choice([0, 0.01, 0.1]), "clip_norm": rng.choice([0, 0.5, 1, 100]),
                      "no_decay": ["**.bias", "**norm*.weight"], "groups": groups},
        "lr": [rng.uniform(0, 1) * 10 ** rng.uniform(-4, -2) for _ in range(steps)],
    }


def rates_of(name, o):
    """Decay and rate of a parameter, told again in Python: '*' stands for one component, '**' for anything."""
    def matches(glob):
        if glob == "**":
            return True
        if glob.startswith("**"):
            return fnmatch.fnmatchcase(name, glob.replace("**", "*").replace("[", "[[]"))
        return len(glob.split(".")) == len(name.split(".")) and all(
            fnmatch.fnmatchcase(n, g.replace("[", "[[]")) for g, n in zip(glob.split("."), name.split(".")))
    decay = 0 if any(matches(g) for g in o["no_decay"]) else o["weight_decay"]
    for group in o["groups"]:
        if matches(group["match"]):
            return group["lr_scale"], group["weight_decay"] if group["weight_decay"] >= 0 else decay
    return 1, decay


def reference(problem, values, grads):
    o = problem["optimizer"]
    params, torch_groups, begin = [], [], 0
    for p in problem["params"]:
        size = int(numpy.prod(p["shape"]))
        tensor = torch.nn.Parameter(torch.from_numpy(values[begin:begin + size].copy()).view(p["shape"]))
        params.append(tensor)
        begin += size
        if p["trainable"]:
            scale, decay = rates_of(p["name"], o)
            torch_groups.append({"params": [tensor], "weight_decay": decay, "lr": 0.0, "scale": scale})
    optimizer = torch.optim.AdamW(torch_groups, betas=(o["beta1"], o["beta2"]), eps=o["eps"])
    trained = [t for t, p in zip(params, problem["params"]) if p["trainable"]]
    out = []
    for step, lr in enumerate(problem["lr"]):
        begin = step * len(values)
        for tensor, p in zip(params, problem["params"]):
            if p["trainable"]:
                reached = problem["pictures"][step] or not p["name"].startswith(("tower.", "connector."))
                tensor.grad = torch.from_numpy(grads[begin:begin + tensor.numel()].copy()).view_as(tensor) if reached else None
            begin += tensor.numel()
        if step not in problem["bad"]:
            if o["clip_norm"] > 0:
                torch.nn.utils.clip_grad_norm_(trained, o["clip_norm"])
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            optimizer.step()
        out.append([t.detach().clone() for t in params])
    return out


def compare(problem, got, want):
    worst, begin = 0.0, 0
    for step in want:
        for tensor in step:
            ours = torch.from_numpy(got[begin:begin + tensor.numel()].copy()).view_as(tensor)
            begin += tensor.numel()
            error = (ours.double() - tensor.double()).norm() / tensor.double().norm()
            worst = max(worst, float(error) if torch.isfinite(error) else float("inf"))
    assert begin == len(got), "the probe wrote another number of values"
    return worst


def main():
    probe = sys.argv[1]
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 1_000_000
    print(f"seed {seed}")
    rng = random.Random(seed)
    worst, steps, skipped = 0.0, 0, 0
    for case in range(25):
        problem = problem_of(rng)
        size = sum(int(numpy.prod(p["shape"])) for p in problem["params"])
        noise = numpy.random.default_rng(rng.randrange(1 << 30))
        values = noise.normal(size=size).astype("float32")
        grads = (noise.normal(size=size * len(problem["lr"])) * 10 ** rng.uniform(-4, 1)).astype("float32")
        first_trained = 0  # the first parameter always trains
        for step in problem["bad"]:
            grads[step * size + first_trained] = rng.choice([float("nan"), float("inf")])
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/problem.json", "w", encoding="utf-8") as file:
                json.dump(problem, file)
            values.tofile(f"{folder}/values.bin")
            grads.tofile(f"{folder}/grads.bin")
            run = subprocess.run([probe, folder], capture_output=True, text=True, check=True)
            got = numpy.fromfile(f"{folder}/result.bin", dtype="float32")
        applied = [step for step in range(len(problem["lr"])) if step not in problem["bad"]]
        expected = [len(applied), sum(problem["pictures"][step] for step in applied)]
        assert [int(n) for n in run.stdout.split()] == expected, f"case {case}: counted {run.stdout.strip()} steps, expected {expected}"
        error = compare(problem, got, reference(problem, values, grads))
        assert error <= TOLERANCE, f"case {case}: relative error {error:.3g} > {TOLERANCE}: {json.dumps(problem)}"
        worst, steps, skipped = max(worst, error), steps + len(applied), skipped + len(problem["bad"])
    print(f"25 problems, {steps} steps, {skipped} skipped; largest relative error {worst:.3g} (allowed {TOLERANCE})")


if __name__ == "__main__":
    main()
