"""FLOPs of a step by our cost model, against torch's FlopCounterMode over transformers' Qwen3-VL and, every second case, Qwen3-VL-MoE.

The counter sees every matrix product of forward and backward as it runs (eager attention, so that its two products are plain
ones). Three conventions differ, and are undone exactly:
- attention is causal for us and counted by half; the reference multiplies the whole square;
- the reference finds the angles of the decoder's rotation by a product with one column, which is no model FLOP for us;
- every trained matrix costs two forwards in our backward; the reference has no gradient of the pixels, so that its patch
  embedding costs one.

usage: flops.py <cost_probe> [seed]
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

PROBE = sys.argv[1]
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
CASES, TEXT_IDS = 12, 90


def expert_numbers(rng, layers):
    experts = rng.choice([3, 4, 8])
    return dict(num_experts=experts, num_experts_per_tok=rng.randint(1, experts), moe_intermediate_size=rng.choice([8, 20]),
                mlp_only_layers=rng.choice([[], [0]]), decoder_sparse_step=rng.choice([1, 1, 2]) if layers > 2 else 1)


def random_config(rng, with_experts):
    head_dim = rng.choice([16, 32, 48])
    third = head_dim // 2 // 3
    kv_heads, hidden, depth, layers, heads = rng.choice([1, 2]), rng.choice([24, 64]), rng.randint(2, 4), rng.randint(2, 4), rng.choice([2, 4])
    return (Qwen3VLMoeConfig if with_experts else Qwen3VLConfig)(
        text_config=dict(
            vocab_size=rng.randint(100, 400), hidden_size=hidden, intermediate_size=rng.choice([48, 96]), num_hidden_layers=layers,
            num_attention_heads=kv_heads * rng.choice([1, 2, 4]), num_key_value_heads=kv_heads, head_dim=head_dim,
            rope_parameters=dict(
                rope_type="default", rope_theta=1e4, mrope_interleaved=True, mrope_section=[head_dim // 2 - 2 * third, third, third]),
            **(expert_numbers(rng, layers) if with_experts else {})),
        vision_config=dict(
            depth=depth, hidden_size=heads * rng.choice([8, 16]), intermediate_size=rng.choice([24, 60]), num_heads=heads,
            out_hidden_size=hidden, patch_size=4, temporal_patch_size=2, spatial_merge_size=2, num_position_embeddings=36,
            deepstack_visual_indexes=sorted(rng.sample(range(depth), rng.randint(0, 2)))),
        tie_word_embeddings=rng.random() < 0.5, image_token_id=TEXT_IDS + 1, video_token_id=TEXT_IDS + 2,
        vision_start_token_id=TEXT_IDS + 3, vision_end_token_id=TEXT_IDS + 4)


def counted(model, inputs):
    """FLOPs of a forward, and of its backward."""
    with FlopCounterMode(display=False) as forward:
        logits = model(**inputs).logits
    with FlopCounterMode(display=False) as backward:
        logits.float().square().mean().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def run_case(index):
    rng = random.Random(f"{SEED}-{index}")
    torch.manual_seed(index)
    with_experts = index % 2 == 1
    config = random_config(rng, with_experts)
    config._attn_implementation = config._experts_implementation = "eager"
    model = (Qwen3VLMoeForConditionalGeneration if with_experts else Qwen3VLForConditionalGeneration)(config).train()
    pictures = [(1, 2 * rng.randint(1, 5), 2 * rng.randint(1, 5))] if index % 3 else []
    tokens = [rng.randrange(TEXT_IDS) for _ in range(rng.randint(5, 40))]
    for _, h, w in pictures:
        tokens += [config.vision_start_token_id] + [config.image_token_id] * (h * w // 4) + [config.vision_end_token_id]
    tokens += [rng.randrange(TEXT_IDS) for _ in range(rng.randint(2, 20))]
    inputs = dict(input_ids=torch.tensor([tokens]),
                  mm_token_type_ids=torch.tensor([[int(t == config.image_token_id) for t in tokens]], dtype=torch.int32))
    patches = sum(h * w for _, h, w in pictures)
    values = 3 * 2 * config.vision_config.patch_size**2
    if pictures:
        inputs |= dict(pixel_values=torch.randn(patches, values), image_grid_thw=torch.tensor(pictures))
    theirs = counted(model, inputs)

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "config.json"
        path.write_text(json.dumps(config.to_dict()))
        numbers = [len(tokens), len(tokens), len(tokens)**2, patches, sum((h * w)**2 for _, h, w in pictures)]
        ours = json.loads(subprocess.run([PROBE, str(path), *map(str, numbers)], capture_output=True, text=True, check=True).stdout)
    patch_embed = 2 * patches * values * config.vision_config.hidden_size
    angles = 2 * 3 * (config.text_config.head_dim // 2) * len(tokens)
    for way, reference, missing in (("forward", theirs[0], -angles), ("backward", theirs[1], patch_embed)):
        whole = sum(part[way] for part in ours.values()) + ours["attention"][way] - missing
        if abs(whole - reference) > 1e-9 * reference:
            print(f"case {index}: {way} {whole:.0f}, reference {reference}; ours by part {ours}")
            return False
    return True


def main():
    good = sum(run_case(index) for index in range(CASES))
    print(f"flops: seed {SEED}, {good} of {CASES} cases equal")
    return 0 if good == CASES else 1


if __name__ == "__main__":
    sys.exit(main())
