"""Step time beside transformers: forward, backward, clipping and AdamW of the same samples from the same weights.

The dataset is exactly what fills the rows of one step, so every step of both sees every sample once, however rows are shuffled."""
import csv
import json
import pathlib
import shutil
import subprocess
import sys

from ours import PEER_ENV, ROOT, TOKENIZER, chat, locked, median, run, write_config, write_conversations

SEQ_LEN, ROWS, MICRO_ROWS = 1024, 4, 2
PEER_MODES = {"padded": "padded batches", "packed": "packed rows", "packed_labels": "packed rows, head on labels only (by hand)"}

SMALL = {"tower": {"type": "qwen3vl_vit", "depth": 4, "hidden": 192, "ffn": 768, "heads": 4}, "connector": {"type": "merger_mlp", "merge": 2},
         "decoder": {"type": "qwen3_dense", "layers": 8, "hidden": 256, "ffn": 768, "heads": 8, "kv_heads": 4, "head_dim": 32,
                     "mrope_section": [6, 5, 5], "tied": True}, "taps": [0, 1, 2]}


def digits():
    """The demonstration's questions about handwritten digits."""
    folder = ROOT / ".cache/digits"
    if not (folder / "train.csv").exists():
        subprocess.run([sys.executable, str(ROOT / "launch/make_digits.py"), str(folder)], check=True)
    with open(folder / "train.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            choices = "\n".join(f"{letter}) {row[letter]}" for letter in "abcd")
            yield chat(f"{row['question']}\n{choices}", row["answer"], str(folder / row["path"]))


def gsm8k():
    """Text only; two thirds of its tokens are labels."""
    for line in (ROOT / "tests/data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        yield chat(item["question"], item["answer"])


def vocab_8192(folder):
    """A tokenizer of 8,192 ids with the family's special tokens, trained on the text that is used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = (part["text"] for messages in gsm8k() for m in messages for part in m["content"])
    size = 8192 - len(specials)
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    folder.mkdir()
    tokenizer.model.save(str(folder))
    added = {str(size + i): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
             for i, text in enumerate(specials)}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "bos_token": None, "model_max_length": 4096}))
    ids = {f"{name}_token": size + specials.index(text) for name, text in
           {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}.items()}
    return str(folder), ids


def samples_of_one_step(tokenizer_folder, conversations):
    """As many conversations as first-fit-decreasing lays in ROWS rows. A picture of the demonstration is 4 tokens."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def length(messages):
        text = "".join(f"<|im_start|>{m['role']}\n" + "".join(p.get("text", "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>") for p in m["content"])
                       + "<|im_end|>\n" for m in messages)
        return len(tokenizer(text)["input_ids"])

    def num_rows(lengths):
        rows = []
        for n in sorted(lengths, reverse=True):
            fits = next((i for i, used in enumerate(rows) if used + n <= SEQ_LEN), None)
            if fits is None:
                rows.append(n)
            else:
                rows[fits] += n
        return len(rows)

    chosen, lengths = [], []
    for messages in conversations:
        n = length(messages)
        if n > SEQ_LEN or num_rows(lengths + [n]) > ROWS:
            break
        chosen.append(messages)
        lengths.append(n)
    return chosen


def cases(folder):
    demo = {"base": str(ROOT / "configs/model/qwen3vl_demo.yaml"), "tokenizer": TOKENIZER}
    own_tokenizer, ids = vocab_8192(folder / "vocab8192")
    small = {**SMALL, "tokenizer": TOKENIZER}
    small_8192 = {**SMALL, "tokenizer": own_tokenizer, **ids, "decoder": {**SMALL["decoder"], "vocab": 8192}}
    return {
        "demo": ("demonstration (hidden 64, 4 layers, V 151,936), digits", demo, digits),
        "wide": ("hidden 256, 8 layers, V 151,936, digits", small, digits),
        "text": ("hidden 256, 8 layers, V 151,936, GSM8K text", small, gsm8k),
        "v8192": ("hidden 256, 8 layers, V 8,192, digits", small_8192, digits),
        "text8192": ("hidden 256, 8 layers, V 8,192, GSM8K text", small_8192, gsm8k),
    }


def start_weights(folder, name, model, data):
    """Our random weights as a Hugging Face folder: one step at rate 0, exported."""
    config = write_config(folder, f"{name}-init", model, {"seq_len": SEQ_LEN, "rows_per_step": 1, "steps": 1}, data,
                          save__export_model=True, optimizer__lr=0)
    run(config)
    return f"{folder}/run-{name}-init/model"


class Worker:
    def __init__(self, *arguments):
        script = pathlib.Path(__file__).with_name("peer_steps.py")
        self.process = subprocess.Popen([sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=PEER_ENV)
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit("the peer did not start")

    def ask(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def largest_difference(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b))


def measure(folder, name, case, options):
    title, model, conversations = case
    data = f"{folder}/{name}.jsonl"
    tokenizer = model["tokenizer"]
    write_conversations(data, samples_of_one_step(tokenizer, conversations()))
    weights = start_weights(folder, name, model, data)
    stage = {"seq_len": SEQ_LEN, "rows_per_step": ROWS, "rows_per_micro_batch": MICRO_ROWS, "steps": options.steps + 2}
    model = {"path": weights, "tokenizer": tokenizer}
    config = write_config(folder, name, model, stage, data, threads=options.threads)
    worker = Worker(weights, data, str(options.threads))
    ours, peers, steps = [], {mode: [] for mode in PEER_MODES}, []
    with locked(options.lock):
        for _ in range(options.rounds):
            steps, _ = run(config)
            ours += [s["step_s"] for s in steps[2:]]
            for mode in PEER_MODES:
                answer = worker.ask(mode=mode, steps=options.peer_steps + 1, micro_batches=ROWS // MICRO_ROWS, seq_len=SEQ_LEN, lr=1e-3)
                peers[mode].append(answer)
    worker.close()
    shutil.rmtree(f"{folder}/run-{name}", ignore_errors=True)
    losses = [s["loss"] for s in steps]
    rows = []
    for mode, answers in peers.items():
        seconds = [s for a in answers for s in a["seconds"][1:]]
        if answers[0]["labels"] != steps[0]["label_tokens"] or answers[0]["tokens"] != steps[0]["tokens"]:
            raise SystemExit(f"{name}, {mode}: {answers[0]} sees other tokens than {steps[0]}")
        rows.append({"case": title, "peer": PEER_MODES[mode], "ours_s": median(ours), "peer_s": median(seconds),
                     "best_ours_s": min(ours), "best_peer_s": min(seconds), "loss": largest_difference(answers[0]["losses"], losses), "compared": len(answers[0]["losses"]),
                     "tokens": steps[0]["tokens"], "labels": steps[0]["label_tokens"]})
        print(f"# {title}: {PEER_MODES[mode]}: ours {median(ours):.3f} s, peer {median(seconds):.3f} s, ratio {median(seconds) / median(ours):.2f}, "
              f"losses within {rows[-1]['loss']:.1e}", file=sys.stderr, flush=True)
    return rows


def table(rows):
    yield "| model and data | tokens (labels) a step | transformers as | ours, ms (best) | peer, ms (best) | ratio (of the best) | losses, largest difference |"
    yield "|---|---|---|---|---|---|---|"
    for r in rows:
        yield (f"| {r['case']} | {r['tokens']:.0f} ({r['labels']:.0f}) | {r['peer']} | {1e3 * r['ours_s']:.0f} ({1e3 * r['best_ours_s']:.0f}) | "
               f"{1e3 * r['peer_s']:.0f} ({1e3 * r['best_peer_s']:.0f}) | **{r['peer_s'] / r['ours_s']:.2f}** ({r['best_peer_s'] / r['best_ours_s']:.2f}) | {r['loss']:.0e} over {r['compared']} steps |")


def part(folder, options):
    rows = []
    for name, case in cases(folder).items():
        if not options.cases or name in options.cases:
            rows += measure(folder, name, case, options)
    yield f"1 rank, {options.threads} threads, float32; rows of {SEQ_LEN} tokens, {ROWS} a step in micro-batches of {MICRO_ROWS}; medians of"
    yield f"{options.rounds} rounds in turn, {options.steps} steps of ours and {options.peer_steps} of each peer a round; each from the same weights."
    yield ""
    yield from table(rows)
