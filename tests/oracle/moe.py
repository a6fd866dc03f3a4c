"""Our models with experts against transformers' Qwen3-VL-MoE and Qwen3-MoE on randomly drawn small configurations: logits, loss
with the load-balancing loss, and every parameter's gradient.

As in model.py, the reference runs samples one by one and we run them as one packed row with a padded tail. transformers' own
load_balancing_loss_func is given the router logits of all samples of the row, laid end to end. Weights go in and gradients
come out in each of the three layouts that folders keep experts in. fp32: largest error over largest reference value of each
tensor; a draw in which two experts' shares lie so close that rounding may choose between them is drawn again.

usage: moe.py <model_probe> [seed]
"""

import json
import random
import sys

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import load_balancing_loss_func
from transformers.utils import logging

import model as dense  # tests/oracle/model.py: samples, running, comparison, bounds

SEED = dense.SEED
CASES, FIXED_SEED, LEAST_GAP = 32, 20261121, 1e-5
LAYOUTS = ["fused_out_in", "fused_in_out", "separate"]


def expert_numbers(rng, layers):
    experts = rng.choice([2, 3, 4, 6, 8, 16])
    step = rng.choice([1, 1, 1, 2]) if layers > 1 else 1
    sparse = [i for i in range(layers) if (i + 1) % step == 0]
    dense_layers = sorted(rng.sample(sparse, rng.randint(0, len(sparse) - 1))) if rng.random() < 0.4 else []
    return dict(num_experts=experts, num_experts_per_tok=rng.randint(2, min(4, experts)), moe_intermediate_size=rng.choice([4, 6, 16, 20]),
                decoder_sparse_step=step, mlp_only_layers=dense_layers, router_aux_loss_coef=rng.choice([0.001, 0.05, 1.0]))


def random_config(rng, text_only):
    base = dense.random_config(rng)
    text = base.text_config
    numbers = expert_numbers(rng, text.num_hidden_layers)
    shape = {key: getattr(text, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")} | numbers
    if text_only:
        # One expert a token only with its raw share: a share of 1 has no gradient, and the reference's is rounding.
        norm_topk = rng.random() < 0.5
        shape["num_experts_per_tok"] -= 0 if norm_topk else rng.randint(0, 1)
        return Qwen3MoeConfig(**shape, norm_topk_prob=norm_topk, tie_word_embeddings=base.tie_word_embeddings,
                              rope_parameters=dict(rope_type="default", rope_theta=text.rope_parameters["rope_theta"]))
    vision = {key: value for key, value in base.vision_config.to_dict().items() if key not in ("model_type", "rope_parameters")}
    ids = {key: getattr(base, key) for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")}
    return Qwen3VLMoeConfig(text_config=shape | dict(rope_parameters=dict(text.rope_parameters)), vision_config=vision,
                            tie_word_embeddings=base.tie_word_embeddings, **ids)


def randomise(model, generator):
    dense.randomise(model, generator, 1.0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3 or name.endswith("mlp.gate.weight"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)


def in_layout(name, tensor, layout):
    """Tensors as a folder of this layout has them."""
    if ".mlp.experts." not in name or layout == "fused_out_in":
        return {name: tensor}
    if layout == "fused_in_out":
        return {name: tensor.transpose(1, 2).contiguous()}
    prefix, what = name.rsplit(".", 1)
    out = {}
    for e, matrix in enumerate(tensor):
        if what == "gate_up_proj":
            out[f"{prefix}.{e}.gate_proj.weight"], out[f"{prefix}.{e}.up_proj.weight"] = (part.contiguous() for part in matrix.chunk(2))
        else:
            out[f"{prefix}.{e}.down_proj.weight"] = matrix.contiguous()
    return out


def smallest_gap(router_logits, choices):
    """Between the last expert chosen and the first one not chosen, and between neighbours of the chosen ones: nothing hangs on those."""
    gaps = []
    for layer in router_logits:
        shares = torch.softmax(layer, -1).sort(-1, descending=True).values
        if choices < shares.shape[-1]:
            gaps.append((shares[:, choices - 1] - shares[:, choices]).min().item())
    return min(gaps, default=1.0)


def build_case(seed, number):
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed % (1 << 62))
    text_only = number % 4 == 3
    config = random_config(rng, text_only)
    config._attn_implementation = config._experts_implementation = "eager"
    model = (Qwen3MoeForCausalLM if text_only else Qwen3VLMoeForConditionalGeneration)(config)
    randomise(model, generator)
    model = model.eval()
    text = config if text_only else config.text_config
    patch = 4 if text_only else config.vision_config.patch_size
    values = 3 * 2 * patch**2
    kinds = rng.choice([["text"], ["text"] * 3] if text_only else
                       [["text"], ["text"] * 3, ["images"], ["video"], ["mixed", "text"], ["images", "video", "text", "images"]])
    padding = rng.choice([0, 1, 7])
    row, router = dense.PackedRow(), []
    for kind in kinds:
        sample = dense.random_sample(rng, config, kind)
        pixels = [torch.randn(t * h * w, values, generator=generator) for _, (t, h, w) in sample[2]]
        inputs = dense.reference_inputs(sample, pixels, torch.float32)
        if text_only:
            inputs = dict(input_ids=inputs["input_ids"])
            positions = torch.arange(len(sample[0])).expand(3, 1, -1)
        else:
            positions, _ = model.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})
        result = model(**inputs, output_router_logits=True)
        router.append(result.router_logits)
        row.add(rng, generator, sample, pixels, positions, result.logits[0])
    router = tuple(torch.cat(layer) for layer in zip(*router))
    if smallest_gap(router, text.num_experts_per_tok) < LEAST_GAP:
        return None
    aux = load_balancing_loss_func(router, text.num_experts, text.num_experts_per_tok)
    loss = row.loss + text.router_aux_loss_coef * aux
    real = len(row.tokens)
    row.pad(padding)
    loss.backward()
    layout = LAYOUTS[number % 3]
    case = row.case(values) | dict(row=torch.tensor([0] * real + [-1] * padding))
    grads = {}
    for name, parameter in model.named_parameters():
        case |= {"weight/" + key: value.clone() for key, value in in_layout(name, parameter.detach(), layout).items()}
        if parameter.grad is not None:
            grads |= in_layout(name, parameter.grad, layout)
    settings = dict(model=json.loads(config.to_json_string(use_diff=False)), recompute_every=rng.choice([0, 0, 1, 2]), dtype="float32",
                    experts_on_disk=layout)
    expected = dict(config=config, logits=torch.cat(row.logits).detach(), loss=loss.detach(), grads=grads, real=real)
    numbers = f"{text.num_experts} experts, {text.num_experts_per_tok} a token, aux {aux.item():.3f} x {text.router_aux_loss_coef}"
    return settings, case, expected, f"{config.model_type} {layout}, {'+'.join(kinds)}, {real} tokens, {numbers}"


def experts_of(decoder):
    return dict(num_experts=decoder["experts"], num_experts_per_tok=decoder["experts_per_token"],
                moe_intermediate_size=decoder["expert_ffn"])


def drawn_cases():
    for number in range(CASES):
        seed, built = (FIXED_SEED + number if number % 2 else SEED + number), None
        while built is None:
            built = build_case(seed, number)
            seed = seed if built else seed + 1_000_003
        yield (seed, torch.float32, *built)


def main():
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    print(f"seed {SEED}; half of the cases have fixed seeds from {FIXED_SEED}")
    problems = dense.check_shapes("qwen3_vl_*_a*.yaml", Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, experts_of)
    worst, found = dense.run_cases(drawn_cases())
    print(f"{CASES} cases in fp32: worst relative error {worst['error']:.2e} (bound {dense.WORST_ERROR:.0e})")
    return dense.report(problems + found)


if __name__ == "__main__":
    sys.exit(main())
