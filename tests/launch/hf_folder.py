"""A Qwen3-VL folder made by transformers at random size: evaluated by us and by transformers (label log-probabilities), trained for
20 steps on two ranks, exported, opened by transformers again, and evaluated by both again.   usage: hf_folder.py [SEED]"""
import json
import random
import sys

import torch
from harness import expect, make_case, make_digits, make_tokenizer, remove, run, special_id
from PIL import Image
from transformers import (AutoProcessor, AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
                          Qwen3VLProcessor, Qwen3VLVideoProcessor)


def make_folder(folder, template, rng, dtype):
    make_tokenizer(f"{folder}/base")
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/base")
    heads = rng.choice([4, 8])
    head_dim = rng.choice([16, 32])
    half = head_dim // 2
    height = half // 3
    depth = rng.choice([2, 3, 4])
    layers = rng.choice([2, 3])
    hidden = rng.choice([32, 48, 64])
    tied = rng.random() < 0.5
    config = Qwen3VLConfig(
        text_config={"vocab_size": 304 + 8 * rng.randrange(4), "hidden_size": hidden, "intermediate_size": 96, "num_hidden_layers": layers,
                     "num_attention_heads": heads, "num_key_value_heads": rng.choice([1, 2, 4]), "head_dim": head_dim, "tie_word_embeddings": tied,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True,
                                         "mrope_section": [half - 2 * height, height, height]}},
        vision_config={"depth": depth, "hidden_size": 32, "intermediate_size": 64, "num_heads": rng.choice([2, 4]), "out_hidden_size": hidden,
                       "num_position_embeddings": 64, "deepstack_visual_indexes": sorted(rng.sample(range(depth), rng.randrange(1, min(depth, layers) + 1)))},
        image_token_id=special_id("<|image_pad|>"), video_token_id=special_id("<|video_pad|>"),
        vision_start_token_id=special_id("<|vision_start|>"), vision_end_token_id=special_id("<|vision_end|>"), tie_word_embeddings=tied)
    torch.manual_seed(rng.randrange(2**31))
    model = Qwen3VLForConditionalGeneration(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=rng.choice(["200KB", "5GB"]))
    pixels = {"shortest_edge": 1024, "longest_edge": 65536}
    Qwen3VLProcessor(image_processor=Qwen2VLImageProcessor(patch_size=16, size=pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3), tokenizer=tokenizer,
                     video_processor=Qwen3VLVideoProcessor(), chat_template=template).save_pretrained(folder)


def make_conversations(folder, rng):
    make_digits(f"{folder}/data", 12, seed=rng.randrange(1000))
    import os
    pictures = sorted(os.listdir(f"{folder}/data/images"))
    lines = []
    for index in range(10):
        content = [{"type": "image", "image": f"images/{p}"} for p in rng.sample(pictures, rng.randrange(0, 3))]
        content.append({"type": "text", "text": rng.choice(["What is it?", "Name the digits.\n", "  Say   something \u4f60\u597d \ud55c\uad6d\uc5b4 12345"])})
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": rng.choice(["seven", "It is 3.", "\ubaa8\ub978\ub2e4"])}]
        if rng.random() < 0.5:
            messages.insert(0, {"role": "system", "content": "You read digits."})
        if rng.random() < 0.4:
            messages += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, quite."}]
        lines.append({"id": f"chat{index}", "messages": messages})
    with open(f"{folder}/data/chat.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def reference_logprobs(folder, data, conversations, dtype):
    """Per sample: labels and their log-probabilities, as transformers computes them."""
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    start, end = special_id("<|im_start|>"), special_id("<|im_end|>")
    header = processor.tokenizer("assistant\n").input_ids
    out = {}
    for line in conversations:
        messages = json.loads(json.dumps(line["messages"]))
        images = []
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    images.append(Image.open(f"{data}/{part['image']}"))
        text = processor.apply_chat_template(messages, tokenize=False)
        inputs = processor(text=[text], images=images or None, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0].double()
        ids = inputs["input_ids"][0].tolist()
        labels, values, position = [], [], 0
        logprobs = logits.log_softmax(-1)
        while position < len(ids):
            if ids[position] == start and ids[position + 1:position + 1 + len(header)] == header:
                position += 1 + len(header)
                while True:
                    labels.append(ids[position])
                    values.append(logprobs[position - 1, ids[position]].item())
                    position += 1
                    if ids[position - 1] == end:
                        break
            else:
                position += 1
        out[line["id"]] = (labels, values)
    return out


def compare(folder, model_folder, config, conversations, dtype, ranks, settings, tolerance):
    dump = f"{folder}/dump.jsonl"
    sets = [word for s in [f"model.path={model_folder}", f"eval.dump={dump}", *settings] for word in ("--set", s)]
    run(ranks, "evaluate", "--config", config, *sets)
    reference = reference_logprobs(model_folder, f"{folder}/data", conversations, dtype)
    with open(dump, encoding="utf-8") as file:
        ours = {line["id"]: line for line in map(json.loads, file)}
    expect(set(ours) == set(reference), f"dump has {sorted(ours)}, expected {sorted(reference)}")
    worst = 0.0
    for name, (labels, values) in reference.items():
        expect(ours[name]["label_ids"] == labels, f"{name}: label ids {ours[name]['label_ids']}, transformers {labels}")
        worst = max(worst, max(abs(a - b) for a, b in zip(ours[name]["label_logprobs"], values)))
    print(f"  {ranks} ranks {settings}: {len(reference)} samples, worst label log-probability difference {worst:.2e}")
    expect(worst <= tolerance, f"label log-probabilities differ by {worst}")


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else random.randrange(10**6)
    rng = random.Random(seed)
    print(f"hf_folder: seed {seed}")
    folder, _ = make_case()
    template = open(f"{__file__.rsplit('/', 2)[0]}/data/chat_templates/qwen3_vl_training.jinja", encoding="utf-8").read()
    source = f"{folder}/hf"
    make_folder(source, template, rng, torch.float32)
    conversations = make_conversations(folder, rng)
    config = f"{folder}/hf.yaml"
    with open(config, "w", encoding="utf-8") as file:
        json.dump({"name": "hf", "out": f"{folder}/run", "device": "cpu", "threads": 1, "model": {"path": source, "dtype": "float32"},
                   "data": {"cache": f"{folder}/packs", "sets": {"chat": {"path": f"{folder}/data/chat.jsonl"}, "digits": {"path": f"{folder}/data/train.csv"}}},
                   "optimizer": {"lr": 1e-3},
                   "stages": [{"name": "sft", "mixture": {"chat": 1, "digits": 2}, "seq_len": 512, "rows_per_step": 4, "steps": 20}],
                   "eval": {"set": "chat"}}, file)
    compare(folder, source, config, conversations, torch.float32, 1, [], 1e-5)
    compare(folder, source, config, conversations, torch.float32, 2, ["parallel.tp=2"], 1e-5)
    run(2, "--config", config, "--set", "parallel.tp=2")
    exported = f"{folder}/run/model"
    before = Qwen3VLForConditionalGeneration.from_pretrained(source).state_dict()
    after = Qwen3VLForConditionalGeneration.from_pretrained(exported).state_dict()
    expect(set(before) == set(after), "the exported folder has other tensors")
    expect(any(not torch.equal(before[k], after[k]) for k in before), "training changed nothing")
    compare(folder, exported, config, conversations, torch.float32, 2, [f"out={folder}/other"], 1e-5)
    remove(folder)


if __name__ == "__main__":
    main()
