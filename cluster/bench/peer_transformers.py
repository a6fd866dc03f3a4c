"""Peer of first_contact.md: transformers' Qwen3-VL in eager mode under FSDP2 (bf16 compute, fp32 reduce and master, fused AdamW),
full fine-tune, on the very micro-batches that ours trained on (tests/bench/batch_dump).
usage: torchrun --nproc-per-node N peer_transformers.py SHAPE BATCHES.safetensors MICRO_BATCHES_PER_STEP [compile] [checkpoint] [row=S]
Every micro-batch is one row of [1, T] with plain causal attention: its fastest form; block-diagonal masks would be slower. row=S: micro-batches
without pictures become [T / S, S]. checkpoint: activations are recomputed."""
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import Qwen3VLForConditionalGeneration

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from make_hf_folder import config_of  # noqa: E402

shape, path, per_step = sys.argv[1], sys.argv[2], int(sys.argv[3])
compiled, checkpointed = "compile" in sys.argv, "checkpoint" in sys.argv
row = next((int(word[4:]) for word in sys.argv if word.startswith("row=")), 0)
dist.init_process_group("nccl")
rank, world = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(rank)
config = config_of(shape)
config._attn_implementation = "sdpa"
with torch.device("meta"):
    model = Qwen3VLForConditionalGeneration(config)
decoder, tower = model.model.language_model, model.model.visual
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
if checkpointed:
    for i, layer in enumerate(decoder.layers):
        decoder.layers[i] = checkpoint_wrapper(layer)
for layer in list(decoder.layers) + list(tower.blocks):
    if compiled:
        layer.compile()
    if world > 1:
        fully_shard(layer, mp_policy=policy)
if world > 1:
    fully_shard(model, mp_policy=policy)
else:
    model.to(torch.bfloat16)
model.to_empty(device="cuda")
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
decoder.rotary_emb.__init__(config.text_config, device="cuda")
width = config.vision_config.hidden_size // config.vision_config.num_heads // 2
tower.rotary_pos_emb.inv_freq = 1.0 / (10000 ** (torch.arange(0, width, 2, device="cuda", dtype=torch.float) / width))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

batches, sizes = {}, {}  # of this rank; sizes: real tokens, without what fills a row up
with safe_open(path, "pt") as file:
    num_batches = len([name for name in file.keys() if name.endswith(".tokens")])
    for i in range(rank, num_batches, world):
        one = {name: file.get_tensor(f"{i}.{name}") for name in ("tokens", "targets", "position", "row_starts", "pixels", "grid")}
        labels = torch.full_like(one["tokens"], -100)
        labels[1:] = one["targets"][:-1]
        if row and one["pixels"].numel() == 0:  # one sample a row, as ours has them, filled up
            starts = one["row_starts"].tolist()
            fill = lambda x, value: torch.stack([F.pad(part, (0, row - part.size(-1)), value=value) for part in x.split(  # noqa: E731
                [b - a for a, b in zip(starts, starts[1:])], -1)], -2)
            batch = dict(input_ids=fill(one["tokens"], 0), labels=fill(labels, -100), position_ids=fill(one["position"], 0))
        else:
            batch = dict(input_ids=one["tokens"][None], labels=labels[None], position_ids=one["position"][:, None])
        if one["pixels"].numel():
            batch |= dict(pixel_values=one["pixels"].to(torch.bfloat16), image_grid_thw=one["grid"],
                          mm_token_type_ids=(one["tokens"] == 151655).long()[None])
        batches[i] = {name: tensor.cuda() for name, tensor in batch.items()}
        sizes[i] = int(one["row_starts"][-1])


def step(index):
    tokens = 0
    for k in range(per_step):
        number = ((index * per_step + k) * world + rank) % num_batches  # a multiple of `world`
        loss = model(**batches[number]).loss / per_step
        loss.backward()
        tokens += sizes[number]
    optimizer.step()
    optimizer.zero_grad()
    return tokens, loss


times, tokens = [], 0
for index in range(8):
    torch.cuda.synchronize()
    dist.barrier()
    began = time.time()
    count, loss = step(index)
    torch.cuda.synchronize()
    dist.barrier()
    if index >= 3:
        times.append(time.time() - began)
        tokens += count
total = torch.tensor([float(tokens)], device="cuda")
dist.all_reduce(total)
if rank == 0:
    middle = sorted(times)[len(times) // 2]
    print(f"PEER transformers {shape} {'compiled' if compiled else 'eager'} FSDP2 x{world}{' checkpointed' if checkpointed else ''}: {total.item() / len(times) / middle:.0f} tok/s in all, "
          f"{total.item() / len(times) / middle / world:.0f} per GPU, step {middle * 1e3:.0f} ms, peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, "
          f"loss {loss.item() * per_step:.3f}", flush=True)
dist.destroy_process_group()
