"""The peer of steps.py: transformers in eager mode with torch.optim.AdamW, as a worker that reads one JSON job a line.

Three ways to feed it: `padded`, as most users do (samples padded to the longest of the batch); `packed`, rows of several samples with
position ids that start again (transformers makes the block-diagonal mask from them); `packed_labels`, the same with the output head on
the rows that have a label only, which a user writes by hand.   usage: peer_steps.py MODEL_FOLDER CHATS.jsonl THREADS"""
import json
import sys
import time

import torch
from transformers import AutoTokenizer, Qwen2VLImageProcessor, Qwen3VLForConditionalGeneration
from transformers.image_utils import load_image
from transformers.utils import logging

ASSISTANT = "<|im_start|>assistant\n"
IMAGE_PAD = "<|image_pad|>"
IGNORE = -100


class Samples:
    """Every sample once: ids, labels, mm_token_type_ids, pixels, grids; what a collator would be given."""

    def __init__(self, folder, chats):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.pictures = Qwen2VLImageProcessor.from_pretrained(folder)
        self.items = [self.encode(json.loads(line)["messages"]) for line in open(chats, encoding="utf-8")]
        self.pad_id = self.tokenizer.pad_token_id

    def encode(self, messages):
        text, pixels, grids = "", [], []
        for message in messages:
            body = ""
            for part in message["content"]:
                if part["type"] == "text":
                    body += part["text"]
                    continue
                prepared = self.pictures(images=[load_image(part["image"])], return_tensors="pt")
                pixels.append(prepared["pixel_values"])
                grids.append(prepared["image_grid_thw"])
                count = int(prepared["image_grid_thw"].prod()) // self.pictures.merge_size**2
                body += f"<|vision_start|>{IMAGE_PAD * count}<|vision_end|>"
            text += f"<|im_start|>{message['role']}\n{body}<|im_end|>\n"
        begin = text.index(ASSISTANT) + len(ASSISTANT)
        end = text.rindex("<|im_end|>") + len("<|im_end|>")
        ids, offsets = (self.tokenizer(text, return_offsets_mapping=True)[k] for k in ("input_ids", "offset_mapping"))
        ids = torch.tensor(ids)
        labelled = torch.tensor([a >= begin and b <= end for a, b in offsets])
        return {"ids": ids, "labels": torch.where(labelled, ids, IGNORE), "pixels": pixels, "grids": grids,
                "types": (ids == self.tokenizer.convert_tokens_to_ids(IMAGE_PAD)).long()}


def pictures_of(items):
    pixels, grids = [p for i in items for p in i["pixels"]], [g for i in items for g in i["grids"]]
    return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat(grids)} if pixels else {}


def padded(items, pad_id):
    def rows(key, fill):
        return torch.nn.utils.rnn.pad_sequence([i[key] for i in items], batch_first=True, padding_value=fill)

    batch = {"input_ids": rows("ids", pad_id), "labels": rows("labels", IGNORE),
             "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(i["ids"]) for i in items], batch_first=True), **pictures_of(items)}
    if "pixel_values" in batch:
        batch["mm_token_type_ids"] = rows("types", 0)
    return batch


def first_fit_decreasing(items, capacity):
    rows = []
    for item in sorted(items, key=lambda i: -len(i["ids"])):
        row = next((r for r in rows if sum(len(i["ids"]) for i in r) + len(item["ids"]) <= capacity), None)
        if row is None:
            rows.append([item])
        else:
            row.append(item)
    return rows


def packed(rows, seq_len, pad_id, model):
    """[B, seq_len]; the tail of a row is a sample of its own without labels."""
    ids, labels, positions = [], [], []
    for row in rows:
        row = row + [{"ids": torch.full([seq_len - sum(len(i["ids"]) for i in row)], pad_id), "pixels": [], "grids": []}]
        ids.append(torch.cat([i["ids"] for i in row]))
        # The first label of a sample belongs to no token before it.
        labels.append(torch.cat([torch.cat([torch.tensor([IGNORE]), i["labels"][1:]]) if "labels" in i else torch.full_like(i["ids"], IGNORE) for i in row]))
        positions.append(torch.cat([positions_of(i, model) for i in row], dim=1))
    flat = [i for row in rows for i in row]
    return {"input_ids": torch.stack(ids), "labels": torch.stack(labels), "position_ids": torch.stack(positions, dim=1), **pictures_of(flat)}


def positions_of(item, model):
    """[4, T]: within the sample, then temporal, height, width."""
    count = len(item["ids"])
    text = torch.arange(count)
    if not item["grids"]:
        return text.expand(4, count)
    three, _ = model.model.get_rope_index(item["ids"][None], mm_token_type_ids=item["types"][None], image_grid_thw=torch.cat(item["grids"]))
    return torch.cat([text[None], three[:, 0]])


def loss_of(model, batch, mode, num_labels):
    if mode != "packed_labels":
        return model(**batch, use_cache=False, num_items_in_batch=num_labels).loss
    labels = batch.pop("labels")
    hidden = model.model(**batch, use_cache=False).last_hidden_state
    target = torch.nn.functional.pad(labels, (0, 1), value=IGNORE)[:, 1:]
    chosen = target != IGNORE
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]).float(), target[chosen], reduction="sum") / num_labels


class Peer:
    def __init__(self, folder, chats):
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.samples = Samples(folder, chats)

    def batches(self, job):
        items, pad = self.samples.items, self.samples.pad_id
        if job["mode"] == "padded":
            size = -(-len(items) // job["micro_batches"])
            return [padded(items[i : i + size], pad) for i in range(0, len(items), size)]
        rows = first_fit_decreasing(items, job["seq_len"])
        size = -(-len(rows) // job["micro_batches"])
        return [packed(rows[i : i + size], job["seq_len"], pad, self.model) for i in range(0, len(rows), size)]

    def optimizer(self, lr):
        decayed, plain = [], []
        for name, value in self.model.named_parameters():
            (plain if name.endswith(".bias") or "norm" in name else decayed).append(value)
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def run(self, job):
        """Steps from the start weights: seconds, loss and gradient norm of each."""
        self.model.load_state_dict(self.start)
        optimizer = self.optimizer(job["lr"])
        batches = self.batches(job)
        num_labels = sum(int((b["labels"][:, 1:] != IGNORE).sum()) for b in batches)
        out = {"seconds": [], "losses": [], "norms": [], "labels": num_labels, "rows": [list(b["input_ids"].shape) for b in batches],
               "tokens": sum(len(i["ids"]) for i in self.samples.items)}
        for _ in range(job["steps"]):
            began = time.perf_counter()
            total = 0.0
            for batch in batches:
                loss = loss_of(self.model, dict(batch), job["mode"], num_labels)
                loss.backward()
                total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            out["seconds"].append(time.perf_counter() - began)
            out["losses"].append(total)
            out["norms"].append(norm.item())
        return out


def main():
    logging.set_verbosity_error()
    torch.set_num_threads(int(sys.argv[3]))
    peer = Peer(sys.argv[1], sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(peer.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
