"""plan, doctor and export through the real program."""
import json
import os
import time

from harness import ROOT, expect, make_case, remove, run

STAGES = [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 2}]
BIG = "configs/run/pretrain_8b.yaml"


def refused(code, word, *arguments, ranks=1):
    done = run(ranks, *arguments, check=False)
    text = done.stdout + done.stderr
    expect(done.returncode == code, f"{arguments}: ended with {done.returncode}, expected {code}\n{text[-2000:]}")
    expect(word in text, f"{arguments}: the message lacks {word!r}\n{text[-2000:]}")


def check_plan(config):
    text = run(1, "plan", "--config", config, "--mesh", "tp2,dp2").stdout
    expect("tp2" in text and "(4 ranks)" in text, "plan does not name the layout")
    expect("decoder.embed.weight" in text and "[160, 32]" in text, "plan does not show the cut embedding")
    for word in ("gradients", "optimizer", "tower", "chunks of logits", "FLOPs of a step", "tower attention", "head"):
        expect(word in text, f"plan says nothing of {word}")

    one, two = (json.loads(run(1, "plan", "--config", config, "--json", "--mesh", mesh).stdout)["stages"][0] for mesh in ("tp1", "dp2"))
    mine, half = one["estimate"]["bytes"]["always"], two["estimate"]["bytes"]["always"]
    key = "optimizer (f32 master, two moments)"
    expect(abs(half[key] / mine[key] - 0.5) < 0.01, "ZeRO-1 over two ranks does not halve the optimizer")
    expect(one["estimate"]["flops_total"] == two["estimate"]["flops_total"], "FLOPs of a step depend on the layout")


def check_big_plan():
    """8B on named GPUs; no data and no weights are there."""
    settings = ["--set", "parallel.tp=1", "--mesh", "dp8"]
    text = run(1, "plan", "--config", BIG, "--gpu", "h200", *settings).stdout
    expect("fits h200:" in text and "time of a step" in text, "plan gives no verdict")
    plan = json.loads(run(1, "plan", "--config", BIG, "--gpu", "h100", "--json", "--mesh", "tp1").stdout)
    verdicts = [stage["gpus"][0] for stage in plan["stages"]]
    expect([v["gpu"] for v in verdicts] == ["h100"] * 5, "a verdict is missing")
    full = verdicts[1]
    expect(not full["fits"] and full["left_bytes"] < 0, "an 8B model with its optimizer cannot fit one H100")
    expect(len(full["would_fit"]) == 3, f"expected three settings that fit, got {full['would_fit']}")
    for suggestion in full["would_fit"]:
        expect(suggestion["peak_bytes"] <= full["memory_bytes"], f"{suggestion} does not fit")
    # What is proposed holds when it is asked for.
    chosen = full["would_fit"][0]
    tp, cp = (next((s.split("=")[1] for s in chosen["set"] if s.startswith(f"parallel.{axis}=")), "1") for axis in ("tp", "cp"))
    sets = [word for s in chosen["set"] if not s.startswith("parallel.") for word in ("--set", s)]
    mesh = f"tp{tp},cp{cp},dp{chosen['world'] // int(tp) // int(cp)}"
    again = json.loads(run(1, "plan", "--config", BIG, "--gpu", "h100", "--json", "--mesh", mesh, *sets).stdout)
    expect(again["stages"][1]["gpus"][0]["fits"], f"{chosen} was proposed, and does not fit")
    table = run(1, "plan", "--config", BIG, "--gpu", "all", "--mesh", "dp8").stdout
    for name in ("t4", "l4", "a100-40", "a100-80", "h100", "h200", "b200", "rtx3090", "rtx4090"):
        expect(f"\n  {name} " in table, f"--gpu all leaves out {name}")


def check_plan_refusals(config):
    refused(2, "did you mean h200", "plan", "--config", config, "--gpu", "h20")
    refused(2, "rtx4090", "plan", "--config", config, "--gpu", "something")
    refused(2, "parallel.pp", "plan", "--config", config, "--mesh", "pp7")
    refused(2, "this model has none: leave ep at 1", "plan", "--config", config, "--mesh", "ep2,dp2")
    refused(2, "expected axes of tp, dp", "plan", "--config", config, "--mesh", "zp2")
    refused(2, "with a size above 0", "plan", "--config", config, "--mesh", "tp0")
    refused(2, "twice", "plan", "--config", config, "--mesh", "tp2,tp4")
    refused(2, "rows_per_step", "plan", "--config", config, "--mesh", "dp3")
    refused(2, "--pictures", "plan", "--config", config, "--pictures", "2")


def check_flags(config):
    """Every command takes the flags that it uses, and says which; none of the libraries' own."""
    for word in ("--flagfile=/nowhere", "--fromenv=config", "--tryfromenv=x", "--helpfull", "--helpxml", "--undefok=x", "--log_dir=/nowhere", "--v=3",
                 "--minloglevel=2", "--vmodule=a=1", "--nojson", "--"):
        refused(2, "got unknown flag", "plan", "--config", config, word)
    for name, flag in [("train", "--checkpoint=x"), ("train", "--mesh=tp2"), ("pack", "--resume=never"), ("evaluate", "--resume=x"),
                       ("export", "--gpu=h200"), ("plan", "--output=x"), ("doctor", "--json")]:
        refused(2, f"got {flag.split('=')[0]} for the command {name}, expected one of [--config, --set, ", name, "--config", config, flag)
    refused(2, "for the command train", "--checkpoint=x", "--config", config)
    for flag, value in [("--pictures", "nan"), ("--pictures", "-0.5"), ("--pictures", "inf"), ("--patches", "-3"), ("--patches", "0"),
                        ("--suggest", "0"), ("--suggest", "-1")]:
        refused(2, f"{flag}: got {value}, expected", "plan", "--config", config, flag, value)


def check_suggest(config):
    """Where no layout of so many GPUs is allowed, the answer is why."""
    text = run(1, "plan", "--config", config, "--suggest", "7", "--gpu", "h200").stdout
    for word in ("no layout of so many GPUs", "dp7: rows_per_step: got 4", "pp7: pipeline: got 7 pieces"):
        expect(word in text, f"--suggest 7 does not say {word!r}\n{text}")
    plan = json.loads(run(1, "plan", "--config", config, "--suggest", "7", "--gpu", "h200", "--json").stdout)
    expect(len(plan["stages"][0]["refused"]) == 2 and plan["stages"][0]["choices"] == [], f"{plan} does not say why")


def check_doctor(folder, config):
    began = time.time()
    text = run(1, "doctor", "--config", config).stdout
    seconds = time.time() - began
    expect("nothing found that would fail" in text, f"doctor finds a fault in a sound config\n{text}")
    expect(seconds < 10, f"doctor took {seconds:.1f} s")
    for word in ("trainer ", "compiler", "torch", "NCCL", "cuDNN", "MPI", "HDF5", "libraries", "glog", "CPU", "limits", "/dev/shm", "GiB free",
                 "reads", "writes"):
        expect(word in text, f"doctor says nothing of {word}\n{text}")
    expect(not [name for name in os.listdir(ROOT) if name.startswith(".doctor.")], "doctor left its file")
    both = run(2, "doctor", "--config", config).stdout
    expect(both.count("nothing found that would fail") == 1 and "2 started" in both, f"two ranks do not make one report\n{both}")
    refused(2, "first thing that would fail: optimizer.lrr", "doctor", "--config", config, "--set", "optimizer.lrr=1")
    refused(2, "-np 2", "doctor", "--config", config, "--set", "parallel.tp=4", ranks=2)
    if "none visible" in text:
        refused(76, "first thing that would fail: device: got cuda", "doctor", "--config", config, "--set", "device=cuda")
        refused(76, "host memory: got", "doctor", "--config", config, "--set", "model.decoder.hidden=16384", "--set", "model.decoder.layers=400")
    text = run(1, "doctor", "--config", config, "--set", "data.sets.spare.path=nowhere.csv", "--set", "stages.all.mixture.train=1").stdout
    expect("nothing found that would fail" in text, f"doctor minds a set that no stage uses\n{text}")
    refused(3, "data.sets.train.path", "doctor", "--config", config, "--set", "data.sets.train.path=nowhere.csv")
    refused(3, "tokenizer", "doctor", "--config", config, "--set", f"model.tokenizer={folder}")
    refused(6, "out: got /proc/run", "doctor", "--config", config, "--set", "out=/proc/run")
    refused(6, "checkpoints, one in the making", "doctor", "--config", config, "--set", "save.keep=100000000")


def said_once():
    """What is asked of the program is answered once, however many ranks there are."""
    for flag, line in [("--version", "trainer "), ("--help", "usage: ")]:
        text = run(3, flag).stdout
        count = sum(l.startswith(line) for l in text.splitlines())
        expect(count == 1, f"{flag} on 3 ranks was answered {count} times:\n{text}")


def main():
    said_once()
    folder, config = make_case(**{"stages": STAGES})
    check_plan(config)
    check_big_plan()
    check_plan_refusals(config)
    check_flags(config)
    check_suggest(config)
    check_doctor(folder, config)
    run(1, "--config", config)
    run(2, "export", "--config", config, "--output", f"{folder}/exported")
    expect(os.path.isfile(f"{folder}/exported/model.safetensors"), "export wrote no weights")
    print("plan, doctor and export ran")
    remove(folder)


if __name__ == "__main__":
    main()
