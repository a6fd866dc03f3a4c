"""The recipes in configs/run on real data with small models: gsm8k_text (loss falls; the folder opens in transformers as a Qwen3 text model
with our log-probabilities; fine-tuned again from there) and finetune_hf on a folder made by transformers, on CSV and on chat JSONL: stopped,
resumed, evaluated, exported, opened.   usage: recipes.py [SEED]"""
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import torch
from harness import ROOT, expect, make_digits, make_tokenizer, remove, run, special_id, start
from hf_folder import make_conversations, make_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3VLForConditionalGeneration

TEMPLATE = f"{ROOT}/tests/data/chat_templates/qwen3_vl_training.jinja"


def words(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def records(out, kind):
    with open(f"{out}/metrics.jsonl", encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if line["kind"] == kind]


def expect_falling(out, name, least):
    losses = [line["loss"] for line in records(out, "step")]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    print(f"  {name}: {len(losses)} steps, loss {first:.3f} -> {last:.3f}")
    expect(last < first - least, f"{name}: loss {first:.3f} -> {last:.3f}, expected a fall of more than {least}")


def text_logprobs(folder, conversations):
    """Of every label, as transformers computes them."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expect(type(model).__name__ == "Qwen3ForCausalLM", f"transformers opened a {type(model).__name__}")
    header, end = tokenizer("<|im_start|>assistant\n").input_ids, special_id("<|im_end|>")
    out = {}
    for line in conversations:
        ids = tokenizer(tokenizer.apply_chat_template(line["messages"], tokenize=False)).input_ids
        begin = next(i for i in range(len(ids)) if ids[i:i + len(header)] == header) + len(header)
        stop = ids.index(end, begin) + 1
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        out[line["id"]] = (ids[begin:stop], [logprobs[i - 1, ids[i]].item() for i in range(begin, stop)])
    return out


def compare_text(folder, data, dump):
    with open(data, encoding="utf-8") as file:
        reference = text_logprobs(folder, [json.loads(line) for line in file][:8])
    with open(dump, encoding="utf-8") as file:
        ours = {line["id"]: line for line in map(json.loads, file)}
    worst = 0.0
    for name, (labels, values) in reference.items():
        expect(ours[name]["label_ids"] == labels, f"{name}: label ids {ours[name]['label_ids']}, transformers {labels}")
        worst = max(worst, max(abs(a - b) for a, b in zip(ours[name]["label_logprobs"], values)))
    print(f"  text model in transformers: worst label log-probability difference {worst:.2e}")
    expect(worst <= 1e-4, f"label log-probabilities differ by {worst}")  # 500 tokens in fp32, of size 10


def gsm8k(folder):
    recipe, out, data = f"{ROOT}/configs/run/gsm8k_text.yaml", f"{folder}/gsm8k", f"{folder}/gsm8k_data"
    subprocess.run([sys.executable, f"{ROOT}/launch/make_gsm8k.py", data], check=True, stdout=subprocess.DEVNULL)
    make_tokenizer(f"{folder}/tokenizer")
    data_settings = {"data.sets.gsm8k.path": f"{data}/train.jsonl", "data.sets.heldout.path": f"{data}/heldout.jsonl",
                     "data.cache": f"{folder}/packs", "device": "cpu", "threads": 1, "out": out}
    settings = {**data_settings, "model.tokenizer": f"{folder}/tokenizer", "model.decoder.vocab": 320, "model.decoder.layers": 2,
                "model.decoder.hidden": 64, "model.decoder.ffn": 128, "stages.train.seq_len": 1024, "stages.train.epochs": 0, "stages.train.steps": 40,
                "eval.every": 20}
    run(2, "--config", recipe, *words(settings))
    expect_falling(out, "gsm8k_text", 1.5)
    expect(len(records(out, "evaluation")) == 2, "the held-out problems were not measured twice")
    run(2, "evaluate", "--config", recipe, *words({**settings, "eval.dump": f"{folder}/dump.jsonl", "parallel.tp": 2}))
    compare_text(f"{out}/model", f"{data}/heldout.jsonl", f"{folder}/dump.jsonl")
    # The folder is a start for fine-tuning like any other.
    again = {**data_settings, "data.sets.train.path": f"{data}/train.jsonl", "out": f"{folder}/again", "model.path": f"{out}/model",
             "stages.sft.epochs": 0, "stages.sft.steps": 3, "stages.sft.seq_len": 1024}
    del again["data.sets.gsm8k.path"]
    run(1, "--config", f"{ROOT}/configs/run/finetune_hf.yaml", *words(again))
    first = records(f"{folder}/again", "step")[0]["loss"]
    last = records(out, "evaluation")[-1]["loss"]
    expect(abs(first - last) < 0.5, f"fine-tuning began at {first}, the model had {last} on held-out problems")


def stop_after(step, out, process):
    """SIGTERM to the job once `step` steps are on record."""
    until = time.time() + 120
    while time.time() < until and process.poll() is None:
        if os.path.exists(f"{out}/metrics.jsonl") and len(records(out, "step")) >= step:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    expect(process.wait(timeout=60) == 0, "a run that was asked to stop ended with an error")


def finetune(folder, source, kind, train, heldout):
    recipe, out = f"{ROOT}/configs/run/finetune_hf.yaml", f"{folder}/{kind}"
    settings = {"model.path": source, "model.dtype": "float32", "data.sets.train.path": train, "data.sets.heldout.path": heldout,
                "data.cache": f"{folder}/packs", "device": "cpu", "threads": 1, "out": out, "stages.sft.seq_len": 512, "stages.sft.rows_per_step": 2,
                "stages.sft.epochs": 0, "stages.sft.steps": 40, "stages.sft.optimizer.lr": 2e-3, "eval.every": 20}
    with open(f"{folder}/log", "w", encoding="utf-8") as log:
        stop_after(10, out, start(2, "--config", recipe, *words(settings), log=log))
    stopped_at = len(records(out, "step"))
    run(2, "--config", recipe, *words(settings))
    steps = [line["step"] for line in records(out, "step")]
    expect(steps == list(range(1, 41)) and stopped_at < 40, f"{kind}: steps on record are {steps}")
    expect_falling(out, f"finetune_hf on {kind}, stopped at step {stopped_at}", 0.2)
    done = run(2, "evaluate", "--config", recipe, *words({**settings, "eval.submission": f"{folder}/{kind}.csv"}))
    expect("loss" in done.stdout, f"evaluate said {done.stdout}")
    run(2, "export", "--config", recipe, "--output", f"{folder}/{kind}_export", *words(settings))
    before, after, by_run = (Qwen3VLForConditionalGeneration.from_pretrained(path).state_dict() for path in
                             (source, f"{folder}/{kind}_export", f"{out}/model"))
    expect(set(before) == set(after), "the exported folder has other tensors")
    expect(any(not torch.equal(before[name], after[name]) for name in before), "training changed nothing")
    expect(all(torch.equal(after[name], by_run[name]) for name in after), "export gives another model than the run")


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"recipes: seed {seed}")
    folder = tempfile.mkdtemp(prefix="hanok-test-")
    gsm8k(folder)
    with open(TEMPLATE, encoding="utf-8") as file:
        make_folder(f"{folder}/hf", file.read(), rng, torch.float32)
    train, heldout = make_digits(f"{folder}/data", 48), make_digits(f"{folder}/data", 24, seed=1, name="heldout.csv")
    finetune(folder, f"{folder}/hf", "csv", train, heldout)
    make_conversations(folder, rng)
    finetune(folder, f"{folder}/hf", "chat", f"{folder}/data/chat.jsonl", f"{folder}/data/chat.jsonl")
    remove(folder)


if __name__ == "__main__":
    main()
