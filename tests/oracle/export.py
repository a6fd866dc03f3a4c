"""trainer/weights against transformers: folders that it made come back bit for bit, and folders that we make open there.

    export.py PROBE SOURCE_DIR
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoConfig, AutoProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
SEED = 20261121
PROBE, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
failures = []


def check(ok, what):
    if not ok:
        failures.append(what)
        print("FAILED:", what)


def random_config(r, tied):
    heads, kv = r.choice([(4, 1), (4, 2), (8, 4), (8, 8)])
    head_dim = r.choice([8, 16])
    half = head_dim // 2
    width = half // 4
    depth = r.randint(2, 4)
    tower_heads = 4
    tower_hidden = tower_heads * 4 * r.randint(1, 3)
    hidden = r.choice([24, 40])
    text = dict(
        vocab_size=r.randint(100, 180), hidden_size=hidden, intermediate_size=4 * r.randint(5, 20),
        num_hidden_layers=r.randint(3, 4), num_attention_heads=heads, num_key_value_heads=kv, head_dim=head_dim,
        rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_interleaved=True,
                             mrope_section=[half - 2 * width, width, width]),
    )  # fmt: skip
    vision = dict(
        depth=depth, hidden_size=tower_hidden, intermediate_size=4 * r.randint(3, 12), num_heads=tower_heads,
        out_hidden_size=hidden, patch_size=r.choice([4, 8]), num_position_embeddings=r.choice([16, 36]),
        deepstack_visual_indexes=sorted(r.sample(range(depth), r.randint(1, 2))),
    )  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, image_token_id=90, video_token_id=91,
                         vision_start_token_id=92, vision_end_token_id=93, tie_word_embeddings=tied)  # fmt: skip


def tensors(folder):
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            for name in f.keys():
                assert name not in out, name
                out[name] = f.get_tensor(name)
    return out


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))  # fmt: skip


def run(*args):
    result = subprocess.run([PROBE, *map(str, args)], capture_output=True, text=True)
    check(result.returncode == 0, f"{args}: {result.stderr[-2000:]}")
    return result.returncode == 0


def import_then_export(scratch):
    r = random.Random(SEED)
    torch.manual_seed(SEED)
    num_tensors = num_folders = 0
    for number in range(12):
        tied, dtype, sharded = number % 2 == 0, [torch.float32, torch.bfloat16][number // 2 % 2], number // 4 % 2 == 0
        config = random_config(r, tied)
        model = Qwen3VLForConditionalGeneration(config).to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        source = scratch / f"hf{number}"
        limit = 20_000 if sharded else 5_000_000_000
        model.save_pretrained(source, max_shard_size=limit)
        expected = tensors(source)
        for tp in (1, 2, 4):
            target = scratch / f"ours{number}_{tp}"
            if not run("import", source, target, tp, str(dtype).split(".")[1], limit, "auto"):
                continue
            got = tensors(target)
            check(got.keys() == expected.keys(), f"{target}: names {sorted(got.keys() ^ expected.keys())}")
            for name in expected.keys() & got.keys():
                check(same_bits(got[name], expected[name]), f"{target}: {name}")
            for name in ("config.json", "generation_config.json"):
                check((target / name).read_bytes() == (source / name).read_bytes(), f"{target}: {name}")
            check((target / "model.safetensors.index.json").exists() == sharded, f"{target}: index")
            for file in target.glob("model-*.safetensors"):
                with safe_open(file, "pt") as f:
                    sizes = [f.get_tensor(k).nbytes for k in f.keys()]
                check(sum(sizes) <= limit or len(sizes) == 1, f"{file}: {sum(sizes)} bytes")
            if sharded:
                ours = json.loads((target / "model.safetensors.index.json").read_text())
                theirs = json.loads((source / "model.safetensors.index.json").read_text())
                check(ours["metadata"] == theirs["metadata"], f"{target}: {ours['metadata']} {theirs['metadata']}")
            num_tensors += len(got)
            num_folders += 1
        ids = torch.randint(0, 80, (1, 9))
        with torch.no_grad():
            logits = [
                Qwen3VLForConditionalGeneration.from_pretrained(f, dtype=dtype).eval()(input_ids=ids).logits
                for f in (source, target)
            ]
        check(torch.equal(*logits), f"{target}: logits")
    print(f"import and export: {num_folders} folders, {num_tensors} tensors, all bits equal: {not failures}")


def written_in_another_dtype(scratch):
    """Weights in the dtype that is asked for, rounded as torch does, in a folder that transformers opens in it."""
    source = scratch / "hf_dtype"
    config = random_config(random.Random(SEED), False)
    for has, as_saved in ((torch.float32, "dtype"), (torch.bfloat16, "dtype"), (torch.float32, "torch_dtype"), (torch.bfloat16, None)):
        torch.manual_seed(SEED)
        Qwen3VLForConditionalGeneration(config).to(has).save_pretrained(source)
        settings = json.loads((source / "config.json").read_text())
        for part in (settings, settings["text_config"], settings["vision_config"]):  # as other versions of transformers save it
            value = part.pop("dtype", None)
            if value and as_saved:
                part[as_saved] = value
        (source / "config.json").write_text(json.dumps(settings))
        before = tensors(source)
        for wanted in (torch.float32, torch.bfloat16, torch.float16):
            target, name = scratch / f"as_{as_saved}_{has}_{wanted}", str(wanted).split(".")[1]
            if not run("import", source, target, 2, "float32", 5_000_000_000, name):
                continue
            after = tensors(target)
            check(after.keys() == before.keys(), f"{target}: names")
            for key in after:
                check(same_bits(after[key], before[key].to(wanted)), f"{target}: {key}")
            model, info = Qwen3VLForConditionalGeneration.from_pretrained(target, dtype="auto", output_loading_info=True)
            check(not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{target}: {info}")
            check({p.dtype for p in model.parameters()} == {wanted}, f"{target}: opens as {model.dtype}, {wanted} was asked for")
            said = json.loads((target / "config.json").read_text())
            check({p[k] for p in (said, said["text_config"], said["vision_config"]) for k in ("dtype", "torch_dtype") if k in p} == {name}, f"{target}: {said}")
    print("another dtype: 12 folders")


def from_scratch(scratch):
    """A folder written without a Hugging Face source opens as if it had been saved there."""
    yaml = SOURCE / "configs/model/qwen3vl_demo.yaml"
    tokenizer = SOURCE / "tests/data/qwen3_vl_tokenizer"
    for tp, dtype in ((1, "float32"), (2, "bfloat16")):
        target = scratch / f"scratch_{dtype}"
        if not run("scratch", yaml, tokenizer, target, tp, dtype):
            continue
        processor = AutoProcessor.from_pretrained(target)
        model, info = Qwen3VLForConditionalGeneration.from_pretrained(target, output_loading_info=True)
        check(not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{target}: {info}")
        check(str(model.dtype) == f"torch.{dtype}", f"{target}: dtype {model.dtype}")
        config = AutoConfig.from_pretrained(target)
        check(config.image_token_id == processor.image_token_id == 151655, f"{target}: image token")
        check(processor.image_processor.size["shortest_edge"] == 4096, f"{target}: {processor.image_processor}")
        check(list(processor.image_processor.image_mean) == [0.5] * 3, f"{target}: mean")
        check(processor.video_processor.size["longest_edge"] == 25165824, f"{target}: {processor.video_processor}")
        check(model.generation_config.eos_token_id == [151645, 151643], f"{target}: eos")
        check(not hasattr(processor.tokenizer, "fix_mistral_regex"), f"{target}: transformers warns of the tokenizer")
        from PIL import Image

        image = Image.effect_noise((96, 64), 50).convert("RGB")
        messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Which digit?"}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        check((inputs["input_ids"] == 151655).sum().item() == 3 * 2, f"{target}: placeholders")
        check(processor.tokenizer.decode(inputs["input_ids"][0][:3]) == "<|im_start|>user\n", f"{target}: template")
        with torch.no_grad():
            logits = model(**inputs).logits
        check(bool(torch.isfinite(logits).all()), f"{target}: logits")
        generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        check(generated.shape[1] > inputs["input_ids"].shape[1], f"{target}: generate")
        print(f"from scratch, {dtype} on {tp} ranks: {len(info.get('error_msgs', []))} errors, opens and generates")


with tempfile.TemporaryDirectory() as folder:
    print(f"seed {SEED}")
    import_then_export(pathlib.Path(folder))
    written_in_another_dtype(pathlib.Path(folder))
    from_scratch(pathlib.Path(folder))
print(f"{len(failures)} differences")
sys.exit(1 if failures else 0)
