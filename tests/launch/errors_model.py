"""Damaged, lying and foreign model folders and tokenizers."""
import json
import os
import shutil
import struct

from catalogue import Base, Case, run_all

WEIGHTS = "hf/model.safetensors"


def read_weights(folder):
    with open(f"{folder}/{WEIGHTS}", "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size)), file.read()


def put(folder, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(f"{folder}/{WEIGHTS}", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def weights(name, *words, code=5, change):
    """change(header, data) -> what is written instead."""
    def prepare(folder):
        put(folder, *change(*read_weights(folder)))
    return model(name, code, *words, prepare=prepare)


def header_of(edit):
    def change(header, data):
        edit(header, sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"]))
        return header, data
    return change


def config_json(name, code, *words, **keys):
    """keys of config.json by path with __ between; ... removes."""
    def prepare(folder):
        path = f"{folder}/hf/config.json"
        with open(path, encoding="utf-8") as file:
            hf = json.load(file)
        for key, value in keys.items():
            *groups, last = key.split("__")
            node = hf
            for group in groups:
                node = node[group]
            if value is ...:
                node.pop(last)
            else:
                node[last] = value
        with open(path, "w", encoding="utf-8") as file:
            json.dump(hf, file)
    return model(name, code, *words, prepare=prepare)


def model(name, code, *words, **more):
    return Case(name, code, *words, copies=("hf",), changes=lambda folder: {"model": {"path": f"{folder}/hf", "dtype": "float32"}}, **more)


def file(name, data):
    def prepare(folder):
        path = f"{folder}/{name}"
        if data is None:
            os.remove(path)
        else:
            with open(path, "wb") as out:
                out.write(data)
    return prepare


def pipe(name):
    def prepare(folder):
        os.remove(f"{folder}/{name}")
        os.mkfifo(f"{folder}/{name}")
    return prepare


def edit_json(name, edit):
    def prepare(folder):
        with open(f"{folder}/{name}", encoding="utf-8") as text:
            value = json.load(text)
        edit(value)
        with open(f"{folder}/{name}", "w", encoding="utf-8") as text:
            json.dump(value, text)
    return prepare


def in_shards(edit):
    """The weights as two shards with an index, which `edit(index)` spoils."""
    def prepare(folder):
        header, data = read_weights(folder)
        names = [n for n in header if n != "__metadata__"]
        index = {"metadata": {}, "weight_map": {}}
        for part, chosen in enumerate([names[::2], names[1::2]]):
            shard, body = {}, b""
            for n in chosen:
                begin, end = header[n]["data_offsets"]
                shard[n] = {**header[n], "data_offsets": [len(body), len(body) + end - begin]}
                body += data[begin:end]
                index["weight_map"][n] = f"model-{part}.safetensors"
            put(folder, shard, body)
            os.rename(f"{folder}/{WEIGHTS}", f"{folder}/hf/model-{part}.safetensors")
        edit(index["weight_map"])
        with open(f"{folder}/hf/model.safetensors.index.json", "w", encoding="utf-8") as out:
            json.dump(index, out)
    return prepare


def first(mapping):
    return next(iter(mapping))


def overlap(header, names):
    a, b = header[names[0]], header[names[1]]
    size = b["data_offsets"][1] - b["data_offsets"][0]
    b["data_offsets"] = [a["data_offsets"][1] - 4, a["data_offsets"][1] - 4 + size]


def nan_weights(header, data):
    begin = header["model.language_model.norm.weight"]["data_offsets"][0]
    return header, data[:begin] + struct.pack("<f", float("nan")) + data[begin + 4:]


def nan_on_the_last_rank(folder):
    header, data = read_weights(folder)
    end = header["model.language_model.embed_tokens.weight"]["data_offsets"][1]
    put(folder, header, data[:end - 4] + struct.pack("<f", float("inf")) + data[end:])


def twice(header, data):
    text = json.dumps(header)
    name = next(n for n in header if n != "__metadata__")
    return (text[:-1] + f', "{name}": {json.dumps(header[name])}}}').encode(), data


def weight_cases():
    return [
        model("weights missing", 5, "safetensors", "hf", prepare=file(WEIGHTS, None)),
        model("only pickled weights", 5, "pytorch_model.bin", "safetensors", prepare=lambda f: os.rename(f"{f}/{WEIGHTS}", f"{f}/hf/pytorch_model.bin")),
        model("weights empty", 5, WEIGHTS, prepare=file(WEIGHTS, b"")),
        weights("weights truncated", WEIGHTS, "fetch", change=lambda h, d: (h, d[:-100])),
        weights("header cut off", WEIGHTS, change=lambda h, d: (json.dumps(h).encode()[:-40], b"")),
        model("header longer than the file", 5, WEIGHTS, prepare=file(WEIGHTS, struct.pack("<Q", 90_000_000) + b"{}" * 50)),
        model("header beyond 100 MB", 5, WEIGHTS, prepare=file(WEIGHTS, struct.pack("<Q", 2**63) + b"{}" * 50)),
        weights("offsets that overlap", "overlap", change=header_of(overlap)),
        weights("hole between tensors", WEIGHTS, change=lambda h, d: header_of(lambda h, n: h.pop(n[3]))(h, d)),
        weights("offsets beyond the file", WEIGHTS, change=header_of(lambda h, n: h[n[-1]].update(data_offsets=[2**40, 2**40 + 64]))),
        weights("negative offsets", WEIGHTS, change=header_of(lambda h, n: h[n[0]].update(data_offsets=[-4, 60]))),
        weights("quantised weights", "model.language_model.norm.weight", "got dtype I32", "quantised weights are not supported",
                change=header_of(lambda h, n: h["model.language_model.norm.weight"].update(dtype="I32"))),
        model("weights that are a pipe", 5, WEIGHTS, "no regular file", prepare=pipe(WEIGHTS)),
        weights("unknown dtype", "F12", change=header_of(lambda h, n: h[n[0]].update(dtype="F12"))),
        weights("shape whose product overflows", "63 bits", change=header_of(lambda h, n: h[n[0]].update(shape=[2**40, 2**40]))),
        weights("tensor named twice", "twice", change=twice),
        weights("bytes behind the data", WEIGHTS, change=lambda h, d: (h, d + b"PK\x03\x04")),
        weights("header that is no JSON", WEIGHTS, change=lambda h, d: (b"{'a': 1}", d)),
        weights("tensor missing", "model.visual", "expected", change=lambda h, d: drop(h, d, "model.visual.pos_embed.weight")),
        weights("tensor of another shape", "model.language_model.norm.weight", code=4, change=header_of(lambda h, n: h["model.language_model.norm.weight"].update(shape=[4, 8]))),
        model("index names a missing shard", 5, "model-2.safetensors", prepare=in_shards(lambda m: m.update({first(m): "model-2.safetensors"}))),
        model("tensor that the index lacks", 5, "index", prepare=in_shards(lambda m: m.pop(first(m)))),
        model("index names another shard", 5, "index", prepare=in_shards(lambda m: m.update({first(m): "model-1.safetensors"}))),
        model("index leaves the folder", 5, "of this folder", prepare=in_shards(lambda m: m.update({first(m): "../../etc/passwd"}))),
        model("index that is no JSON", 5, "index.json", prepare=lambda f: (in_shards(lambda m: None)(f), file("hf/model.safetensors.index.json", b"{weight")(f))),
        model("fault that one rank alone meets", 5, "[rank 1]", "not finite", "decoder.embed.weight", ranks=(2,), settings=["parallel.tp=2"], prepare=nan_on_the_last_rank),
        weights("weights that are not numbers", "not finite", "decoder.norm.weight", "damaged", change=nan_weights),
    ]


def drop(header, data, name):
    begin, end = header.pop(name)["data_offsets"]
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [x - (end - begin) for x in entry["data_offsets"]]
    return header, data[:begin] + data[end:]


def config_cases():
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2}
    return [
        Case("model folder that is absent", 2, "model.path: got", "config.json", settings=["model.path=/nowhere/model"]),
        model("config.json missing", 2, "model.path", "config.json", prepare=file("hf/config.json", None)),
        model("config.json not JSON", 2, "hf/config.json", "at byte 2", prepare=file("hf/config.json", b"{model_type: qwen3_vl}")),
        model("config.json that is a pipe", 2, "hf/config.json", "something that is not a file", prepare=pipe("hf/config.json")),
        model("config.json empty", 2, "hf/config.json", prepare=file("hf/config.json", b"")),
        model("config.json a list", 2, "config.json", prepare=file("hf/config.json", b"[1]")),
        model("config.json of Llama", 2, "llama", "qwen3_vl", "config.json", prepare=file("hf/config.json", json.dumps(llama).encode())),
        config_json("config.json of Qwen2.5-VL", 2, "qwen2_5_vl", "expected", "qwen3_vl", model_type="qwen2_5_vl", architectures=["Qwen2_5_VLForConditionalGeneration"]),
        config_json("config.json of a mixture of experts without their number", 2, "text_config.num_experts: got nothing", model_type="qwen3_vl_moe"),
        config_json("quantised folder", 2, "quantization_config", quantization_config={"quant_method": "awq"}),
        config_json("config.json without a key", 2, "text_config.num_hidden_layers", text_config__num_hidden_layers=...),
        config_json("config.json without text_config", 2, "text_config", text_config=...),
        config_json("config.json of a wrong type", 2, "text_config.hidden_size", "wide", text_config__hidden_size="wide"),
        config_json("config.json of absurd sizes", 2, "hidden", "1000000000", text_config__hidden_size=10**9),
        config_json("config.json of negative sizes", 2, "depth", vision_config__depth=-3),
        config_json("config.json of an absurd vocabulary", 2, "vocab", text_config__vocab_size=10**15),
        config_json("model that no memory holds", 76, "memory", text_config__num_hidden_layers=2000, text_config__hidden_size=16384,
                    text_config__intermediate_size=65536, vision_config__out_hidden_size=16384),
        config_json("another activation", 2, "hidden_act", "relu", text_config__hidden_act="relu"),
        config_json("config.json wider than the weights", 4, "got shape", "config.json", text_config__intermediate_size=96),
    ]


def tokenizer(name, code, *words, **more):
    return Case(name, code, *words, copies=("tokenizer",), **more)


def tokenizer_cases():
    def without(token):
        def edit(value):
            value["eos_token"] = "<|endoftext|>"
            for entry in value["added_tokens_decoder"].values():
                entry["content"] = entry["content"].replace(token, "<|other|>")
        return edit_json("tokenizer/tokenizer_config.json", edit)

    def own_template(value):
        value["chat_template"] = "{% for m in messages %}{{ m.role }}{% endfor %}"

    return [
        tokenizer("tokenizer missing", 3, "tokenizer", "vocab.json", prepare=file("tokenizer/vocab.json", None)),
        Case("tokenizer folder that is absent", 3, "/nowhere/tokenizer", settings=["model.tokenizer=/nowhere/tokenizer"]),
        tokenizer("vocabulary that is no JSON", 3, "vocab.json", prepare=file("tokenizer/vocab.json", b"{a")),
        tokenizer("merges that are binary", 3, "merges.txt", prepare=file("tokenizer/merges.txt", bytes(range(256)) * 40)),
        tokenizer("tokenizer without image_pad", (2, 3), "<|image_pad|>", prepare=without("<|image_pad|>")),
        tokenizer("tokenizer without im_end", (2, 3), "<|im_end|>", prepare=without("<|im_end|>")),
        tokenizer("placeholder of another id", 2, "image_token", "301", settings=["model.image_token=301"]),
        tokenizer("vocabulary larger than the model", (2, 3), "model.decoder.vocab", settings=["model.decoder.vocab=304"], prepare=edit_json(
            "tokenizer/tokenizer_config.json", lambda v: v["added_tokens_decoder"].update({"304": {**v["added_tokens_decoder"]["296"], "content": "digit"}}))),
        tokenizer("unknown template in the folder", 3, "chat template", "data.chat_template", settings=["data.chat_template=''"],
                  prepare=edit_json("tokenizer/tokenizer_config.json", own_template)),
        Case("unknown name of a template", 2, "data.chat_template: got qwen", "expected", "qwen3_vl", settings=["data.chat_template=qwen"]),
        tokenizer("no template at all", 3, "data.chat_template", settings=["data.chat_template=''"]),
    ]


def main():
    base = Base()
    base.finish_run()
    shutil.move(f"{base.folder}/run/model", f"{base.folder}/hf")
    run_all(base, weight_cases() + config_cases() + tokenizer_cases())


if __name__ == "__main__":
    main()
