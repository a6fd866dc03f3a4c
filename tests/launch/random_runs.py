"""Whole runs on drawn models, data, settings and layouts: one rank never disturbed against a run that begins on one layout, is killed or stopped
at a drawn moment, goes on on a second layout, is evaluated on a third and exported on a fourth. Losses, label log-probabilities and
exported weights agree.   usage: random_runs.py [COUNT [SEED]]"""
import json
import os
import random
import signal
import sys
import time

from harness import expect, make_case, make_digits, metrics, ranks_of, remove, run, start, tiny_config
from hf_folder import make_conversations
from safetensors import safe_open

STEPS = 10


def draw_model(rng):
    """Keys of the model; heads, widths and the vocabulary divide by tp where the program asks for it, and by nothing else."""
    head_dim = rng.choice([8, 16, 24])
    half = head_dim // 2
    height = max(1, half // 3)
    depth, layers = rng.choice([2, 3, 4]), rng.choice([2, 3, 4, 5])
    kv = rng.choice([1, 2, 4])
    taps = sorted(rng.sample(range(depth), rng.randrange(0, min(depth, layers) + 1)))
    tower_heads = rng.choice([4, 8])
    return {"model.tower.depth": depth, "model.tower.hidden": tower_heads * 8, "model.tower.heads": tower_heads, "model.tower.ffn": 4 * rng.randrange(8, 30),
            "model.taps": taps, "model.decoder.layers": layers, "model.decoder.hidden": 4 * rng.randrange(6, 20), "model.decoder.head_dim": head_dim,
            "model.decoder.heads": kv * rng.choice([n for n in (1, 2, 4, 8) if n * kv >= 4 and n * kv <= 8]), "model.decoder.kv_heads": kv,
            "model.decoder.ffn": 4 * rng.randrange(6, 40), "model.decoder.vocab": 304 + rng.randrange(40), "model.decoder.tied": rng.random() < 0.5,
            "model.decoder.mrope_section": [half - 2 * height, height, height], **draw_experts(rng, layers)}


def draw_experts(rng, layers):
    if rng.random() < 0.6:
        return {}
    experts = rng.choice([4, 6, 8])
    return {"model.decoder.type": "qwen3_moe", "model.decoder.experts": experts, "model.decoder.experts_per_token": rng.choice([1, 2, 3]),
            "model.decoder.expert_ffn": 4 * rng.randrange(4, 12), "model.decoder.expert_step": rng.choice([1, 1, 2]),
            "model.decoder.dense_layers": rng.choice([[], [0]]), "model.decoder.aux_loss": rng.choice([0, 0.01, 0.01])}


def draw_stages(rng):
    common = {"mixture": rng.choice([{"train": 1}, {"chat": 1}, {"train": 1, "chat": 0.5}]), "seq_len": rng.choice([384, 512, 768]),
              "rows_per_step": 12, "rows_per_micro_batch": rng.choice([1, 1, 2, 3]), "weight": rng.choice(["sqrt", "token", "sample"]),
              "sample": rng.choice(["sample", "turn"]), "recompute": rng.choice(["none", "selective", "all_but_attention", "full"]), "recompute_every": rng.choice([1, 2])}
    frozen = rng.choice([["**"], ["**"], ["decoder.**"], ["connector.**", "decoder.layers.1.**"], ["tower.**", "connector.**"]])
    cut = rng.randrange(2, STEPS - 2)
    return [{"name": "first", "trainable": frozen, "steps": cut, **common}, {"name": "second", "steps": STEPS - cut, **common}]


def most_pieces(layers):
    """Every piece of a pipeline but the first and the last holds half a layer at least."""
    return 2 * layers + 2


def draw_pieces(rng, layers, count):
    """Layers of so many pieces, in halves."""
    while True:
        cuts = [0, *sorted(rng.randrange(2 * layers + 1) for _ in range(count - 1)), 2 * layers]
        sizes = [end - begin for begin, end in zip(cuts, cuts[1:])]
        if all(size > 0 for size in sizes[1:-1]):
            return [size / 2 for size in sizes]


def draw_layout(rng, model, stage):
    """(ranks, settings) that fit the model and the rows of a step."""
    layers, experts = model["model.decoder.layers"], model.get("model.decoder.experts", 0)
    while True:
        tp, cp, pp, dp = (rng.choice(sizes) for sizes in ((1, 1, 2, 4), (1, 1, 2, 3), (1, 1, 2, 3), (1, 1, 2, 3, 4)))
        ranks = tp * cp * pp * dp
        if ranks > 6 or stage["rows_per_step"] % (dp * stage["rows_per_micro_batch"]):
            continue
        out = {"parallel.tp": tp, "parallel.cp": cp, "parallel.pp": pp, "parallel.sequence": rng.random() < 0.6}
        if cp > 1:
            out["parallel.context"] = rng.choice(["auto", "gather", "ring"])
        if pp > 1:
            schedules = ["1f1b", "zb-h1"]
            schedules += ["zb-v"] if 2 * pp <= most_pieces(layers) else []
            micro_batches = stage["rows_per_step"] // (dp * stage["rows_per_micro_batch"])
            schedules += ["interleaved"] if 2 * pp <= most_pieces(layers) and micro_batches % pp == 0 else []
            out["parallel.schedule"] = rng.choice(schedules)
            most_room = {"zb-v": 2 * pp, "1f1b": pp - 1}.get(out["parallel.schedule"], 0)
            out["parallel.pp_room"] = rng.randrange(most_room + 1)
            if rng.random() < 0.5:
                out["parallel.pp_layers"] = draw_pieces(rng, layers, pp * (2 if out["parallel.schedule"] in ("zb-v", "interleaved") else 1))
        if experts:
            out["parallel.ep"] = rng.choice([n for n in (1, 2, 4) if tp * cp * dp % n == 0 and experts % n == 0])
            out["parallel.etp"] = rng.choice([n for n in (1, 1, 2, 4) if tp * cp * dp % (n * out["parallel.ep"]) == 0])
        return ranks, out


def words(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def losses(folder):
    """By stage and step; a step that was done again after a kill counts as it was the last time."""
    return {(line["stage"], line["step"]): line["loss"] for line in metrics(folder) if line["kind"] == "step"}


def disturb(rng, folder, config, layout, how):
    """Starts, and ends the job at a drawn step."""
    ranks, settings = layout
    target = rng.randrange(1, STEPS)
    with open(f"{folder}/log", "w", encoding="utf-8") as log:
        job = start(ranks, "--config", config, *words(settings), log=log)
        until = time.time() + 120
        while job.poll() is None and time.time() < until:
            if len(metrics_so_far(folder)) >= target:
                break
            time.sleep(0.01)
        if how == signal.SIGKILL:  # of a rank; mpirun and the others must follow
            for pid in rng.sample(sorted(ranks_of(config)), 1) if ranks_of(config) else []:
                os.kill(pid, how)
        else:
            job.send_signal(how)
        job.wait(timeout=60)
    done = metrics_so_far(folder)
    expect(done or target == 1, f"the run ended before its first step: {open(f'{folder}/log', encoding='utf-8').read()[-3000:]}")
    return len(done)


def metrics_so_far(folder):
    if not os.path.exists(f"{folder}/run/metrics.jsonl"):
        return []
    with open(f"{folder}/run/metrics.jsonl", encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n") and '"kind":"step"' in line.replace(" ", "")]


def dump_of(folder, config, layout):
    path = f"{folder}/dump.jsonl"
    run(layout[0], "evaluate", "--config", config, *words({**layout[1], "eval.dump": path}))
    with open(path, encoding="utf-8") as file:
        return {line["id"]: line for line in map(json.loads, file)}


def weights_of(folder):
    out = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with safe_open(f"{folder}/{name}", "pt") as file:
                out.update({key: file.get_tensor(key) for key in file.keys()})
    return out


def attempt(seed):
    rng = random.Random(seed)
    keys = draw_model(rng)
    stages = draw_stages(rng)
    # eps 1e-3: with 1e-8 a gradient that is zero but for rounding would be blown up to full steps
    optimizer = {"lr": 2e-3, "eps": 1e-3, "schedule": rng.choice(["cosine", "linear", "wsd", "constant"]), "clip_norm": rng.choice([0, 0.3, 1]), "warmup_steps": rng.choice([0, 1])}
    folder, _ = make_case()
    make_conversations(folder, rng)
    make_digits(f"{folder}/data", rng.choice([9, 31, 48]))
    changes = {**keys, "stages": stages, "optimizer": optimizer, "data.sets": {
        "train": {"path": f"{folder}/data/train.csv"}, "chat": {"path": f"{folder}/data/chat.jsonl"}, "heldout": {"path": f"{folder}/data/heldout.csv"}},
        "save": {"every": rng.choice([1, 2, 3]), "keep": 2}, "seed": rng.randrange(1000), "data.reader_threads": rng.choice([1, 2])}
    config = tiny_config(folder, **changes)
    run(1, "--config", config)
    expected, dump, weights = losses(folder), dump_of(folder, config, (1, {})), weights_of(f"{folder}/run/model")
    os.rename(f"{folder}/run", f"{folder}/reference")
    layouts = [draw_layout(rng, keys, stages[0]) for _ in range(4)]
    how = rng.choice([signal.SIGKILL, signal.SIGTERM])
    what = f"seed {seed}: {json.dumps(keys)} {json.dumps(stages[0])} layouts {json.dumps(layouts)} {how.name}"
    stopped = disturb(rng, folder, config, layouts[0], how)
    run(layouts[1][0], "--config", config, *words(layouts[1][1]))
    got = losses(folder)
    expect(set(got) == set(expected), f"{what}: steps {sorted(got)}")
    worst_loss = max(abs(got[at] - expected[at]) / max(1e-6, abs(expected[at])) for at in expected)
    ours = dump_of(folder, config, layouts[2])
    expect(set(ours) == set(dump), f"{what}: samples of the dump differ")
    worst_dump = max(abs(a - b) for name in dump for a, b in zip(dump[name]["label_logprobs"], ours[name]["label_logprobs"]))
    run(layouts[3][0], "export", "--config", config, "--output", f"{folder}/exported", *words(layouts[3][1]))
    exported, by_run = weights_of(f"{folder}/exported"), weights_of(f"{folder}/run/model")
    expect(set(exported) == set(weights), f"{what}: exported tensors differ")
    expect(all(bool((exported[name] == by_run[name]).all()) for name in by_run), f"{what}: export on a layout differs from the run's own")
    worst_weight = max((exported[name].double() - weights[name].double()).abs().max().item() for name in weights if weights[name].numel())
    print(f"seed {seed}: {[(ranks, s) for ranks, s in layouts]}, {how.name} at step {stopped}: loss {worst_loss:.1e}, log-probabilities {worst_dump:.1e}, weights {worst_weight:.1e}", flush=True)
    expect(worst_loss < 1e-5 and worst_dump < 1e-4 and worst_weight < 1e-4, what)  # fp32; seen: 1e-7, 1e-6, 1e-7
    remove(folder)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"random_runs: {count} from seed {seed}")
    for i in range(count):
        attempt(seed + i)


if __name__ == "__main__":
    main()
