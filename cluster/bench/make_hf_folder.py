"""A Qwen3-VL folder of a published shape with random weights, in the sharded layout of the published ones.
usage: make_hf_folder.py 2b|4b|8b|tiny FOLDER [TOKENIZER_FOLDER]"""
import os
import shutil
import sys

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

SHAPES = {  # hidden, ffn, layers, tied; tower: depth, hidden, ffn, taps
    "tiny": (64, 128, 4, 8, True, 3, 256, 256, [0, 1, 2]),  # published by nobody: the scripts here can be tried on a CPU with it
    "2b": (2048, 6144, 28, 16, True, 24, 1024, 4096, [5, 11, 17]),
    "4b": (2560, 9728, 36, 32, True, 24, 1024, 4096, [5, 11, 17]),
    "8b": (4096, 12288, 36, 32, False, 27, 1152, 4304, [8, 16, 24]),
}


def config_of(shape):
    hidden, ffn, layers, heads, tied, depth, tower, tower_ffn, taps = SHAPES[shape]
    rope = {"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config=dict(vocab_size=151936, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=8, head_dim=128, max_position_embeddings=262144, rope_parameters=rope, tie_word_embeddings=tied),
        vision_config=dict(depth=depth, hidden_size=tower, intermediate_size=tower_ffn, num_heads=16, out_hidden_size=hidden,
                           deepstack_visual_indexes=taps),
        tie_word_embeddings=tied, image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653)


def main():
    shape, folder = sys.argv[1], sys.argv[2]
    tokenizer = sys.argv[3] if len(sys.argv) > 3 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "data", "qwen3_vl_tokenizer")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen3VLForConditionalGeneration(config_of(shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1) if name.endswith("norm.weight") else parameter.normal_(0, 0.02)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="5GB")
    for name in os.listdir(tokenizer):
        if name.endswith((".json", ".txt")):
            shutil.copy(os.path.join(tokenizer, name), folder)
    print(folder, sum(p.numel() for p in model.parameters()), "parameters", sorted(os.listdir(folder)))


if __name__ == "__main__":
    main()
