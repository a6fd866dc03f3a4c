"""Label log-probabilities of a model folder: ours (trainer evaluate, eval.dump) against transformers on the same samples (batch_dump).
usage: compare_logits.py FOLDER DUMP.jsonl BATCHES.safetensors"""
import json
import sys

import torch
from safetensors import safe_open
from transformers import Qwen3VLForConditionalGeneration

folder, dump, batches = sys.argv[1:4]
ours = {tuple(line["label_ids"]): line["label_logprobs"] for line in map(json.loads, open(dump, encoding="utf-8"))}
model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa", device_map="cuda:0").eval()
seen, worst, total, count, sums = 0, 0.0, 0.0, 0, []
with safe_open(batches, "pt") as file, torch.no_grad():
    for i in range(len([name for name in file.keys() if name.endswith(".tokens")])):
        tokens, targets, starts, pixels, grid = (file.get_tensor(f"{i}.{name}") for name in ("tokens", "targets", "row_starts", "pixels", "grid"))
        patch = picture = 0
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist()):
            ids, want = tokens[begin:end], targets[begin:end]
            if (want != -100).sum() == 0:
                continue
            patches = int(grid[picture].prod())  # one picture a sample
            logits = model(input_ids=ids[None].cuda(), pixel_values=pixels[patch:patch + patches].cuda().bfloat16(), image_grid_thw=grid[picture:picture + 1].cuda(),
                           mm_token_type_ids=(ids == 151655).long()[None].cuda()).logits[0].float()
            patch, picture = patch + patches, picture + 1
            where = (want != -100).nonzero().squeeze(1)
            reference = logits.log_softmax(-1)[where.cuda(), want[where].cuda()].cpu()
            got = torch.tensor(ours[tuple(want[where].tolist())])
            worst = max(worst, (got - reference).abs().max().item())
            total += (got - reference).abs().sum().item()
            count += len(where)
            sums += [(got.mean() - reference.mean()).abs().item()]
            seen += 1
print(f"{seen} samples, {count} labels: log-probabilities differ by {total / count:.4f} on average, {worst:.4f} at most; mean of a sample by {max(sums):.4f} at most")
