"""dataio/tokenizer against Hugging Face `tokenizers`: ids, offsets and decoded text, 0 differences allowed.

tokenizer.py PROBE DATA        DATA holds qwen_tokenizer/ and gsm8k/ (tests/data)
"""

import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata

os.environ.setdefault("HF_HUB_OFFLINE", "1")
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)  # noqa: E402
from transformers import Qwen2Tokenizer  # noqa: E402

SEED = 20261121
NUM_LINES = 200_000
PROBE, DATA = sys.argv[1], pathlib.Path(sys.argv[2])

# Qwen3-VL's added tokens: text -> special.
QWEN3_VL = {
    "<|endoftext|>": True, "<|im_start|>": True, "<|im_end|>": True, "<|object_ref_start|>": True,
    "<|object_ref_end|>": True, "<|box_start|>": True, "<|box_end|>": True, "<|quad_start|>": True,
    "<|quad_end|>": True, "<|vision_start|>": True, "<|vision_end|>": True, "<|vision_pad|>": True,
    "<|image_pad|>": True, "<|video_pad|>": True, "<tool_call>": False, "</tool_call>": False,
    "<|fim_prefix|>": False, "<|fim_middle|>": False, "<|fim_suffix|>": False, "<|fim_pad|>": False,
    "<|repo_name|>": False, "<|file_sep|>": False, "<tool_response>": False, "</tool_response>": False,
    "<think>": False, "</think>": False,
}  # fmt: skip
EXPRESSIONS = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"\p{N}{1,3}|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?<=\d)(?=x)x+|.\d?|\S{2,5}?\s{,2}",
]
NOT_UNDERSTOOD = {4}  # an anchor and a class under (?i:


class Lines:
    """Lines of every kind that breaks tokenizers."""

    def __init__(self, seed, added):
        self.r = random.Random(seed)
        self.added = added
        self.gsm = [json.loads(x)[k] for x in (DATA / "gsm8k/train.jsonl").open() for k in ("question", "answer")]
        self.code = (pathlib.Path(__file__).read_text() + json.dumps(QWEN3_VL, indent=4)).splitlines(keepends=True)
        assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co")]
        self.assigned = assigned
        self.marks = [c for c in assigned if unicodedata.combining(c)] + [
            "\u1161",
            "\u11a8",
            "\u3099",
            "\u09be",
            "\u0338",
        ]
        self.composites = [c for c in assigned if unicodedata.normalize("NFD", c) != c]
        self.spaces = [
            " ",
            " ",
            " ",
            "\t",
            "\n",
            "\r",
            "\r\n",
            "\u00a0",
            "\u3000",
            "\u2003",
            "\u0085",
            "\u180e",
            "\u200b",
            "\x0b",
            "\x1c",
        ]
        self.emoji = [
            "\U0001f468",
            "\U0001f469",
            "\U0001f467",
            "\u200d",
            "\ufe0f",
            "\U0001f3fd",
            "\u2764",
            "\U0001f1f0",
            "\U0001f1f7",
            "1\ufe0f\u20e3",
        ]
        self.parts = [
            self.korean, self.chinese, self.japanese, self.emojis, self.combining, self.digits, self.gsm_line, self.code_line,
            self.space_run, self.added_token, self.any_assigned, self.word, self.contraction, self.any_scalar, self.decomposed,
        ]  # fmt: skip

    def many(self, low, high, make):
        return "".join(make() for _ in range(self.r.randint(low, high)))

    def korean(self):
        return self.many(1, 8, lambda: chr(self.r.randint(0xAC00, 0xD7A3))) + self.r.choice(["", " ", "은 ", "다. "])

    def chinese(self):
        return self.many(
            1, 30, lambda: chr(self.r.choice([self.r.randint(0x4E00, 0x9FFF), self.r.randint(0x3400, 0x4DBF), 0x3002]))
        )

    def japanese(self):
        return self.many(1, 10, lambda: chr(self.r.randint(0x3040, 0x30FF)))

    def emojis(self):
        return self.many(1, 6, lambda: self.r.choice(self.emoji))

    def combining(self):
        base = self.r.choice(
            ["a", "e", "o", "U", "\u0627", "\u0915", "\u1100", "\uac00", self.r.choice(self.composites)]
        )
        return base + self.many(0, 4, lambda: self.r.choice(self.marks))

    def decomposed(self):
        return unicodedata.normalize(
            self.r.choice(["NFD", "NFKD"]), self.korean() + self.r.choice(self.composites) + "caf\u00e9"
        )

    def digits(self):
        return self.many(1, 12, lambda: self.r.choice("0123456789.,\u0663\u2167\u00bd"))

    def gsm_line(self):
        text = self.r.choice(self.gsm)
        begin = self.r.randrange(len(text))
        return text[begin : begin + self.r.randint(1, 120)]

    def code_line(self):
        return self.r.choice(self.code)

    def space_run(self):
        return self.many(1, 6, lambda: self.r.choice(self.spaces) * self.r.randint(1, 3))

    def added_token(self):
        token = self.r.choice(self.added)
        return self.r.choice([token, token, token[:-1], token + " ", " " + token, token * 2, token.upper()])

    def any_assigned(self):
        return self.many(1, 5, lambda: self.r.choice(self.assigned))

    def any_scalar(self):
        return self.many(
            1, 3, lambda: chr(self.r.choice([self.r.randrange(0xD800), self.r.randrange(0xE000, 0x110000)]))
        )

    def word(self):
        return self.r.choice(["", " "]) + self.many(1, 9, lambda: self.r.choice("etaoinshrdluETAOIN_-"))

    def contraction(self):
        return (
            self.r.choice(["I", "we", "she", "é", "漢"])
            + self.r.choice(["'", "\u2019"])
            + self.r.choice(["s", "S", "ſ", "LL", "lL", "re", "T", "x", "d2", "ve", "M", "st"])
        )

    def text(self):
        return self.many(1, 5, lambda: self.r.choice(self.parts)())

    def line(self):
        """UTF-8 bytes; one in seven is broken somewhere."""
        raw = bytearray(self.text().encode())
        if raw and self.r.random() < 0.15:
            for _ in range(self.r.randint(1, 4)):
                at = self.r.randrange(len(raw) + 1)
                if self.r.random() < 0.4 and at < len(raw):
                    del raw[at]
                else:
                    raw.insert(
                        at,
                        self.r.choice(
                            [0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xE2, 0xED, 0xA0, 0xF0, 0xF4, 0x90, 0xF5, 0xFF, 0xEF]
                        ),
                    )
        return bytes(raw)


def run_probe(mode, folder, records):
    """One result a record: ids; with "encode" (ids, decoded); with "offsets" (ids, spans)."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = f"{scratch}/in", f"{scratch}/out"
        with open(source, "wb") as f:
            f.write(b"".join(struct.pack("<I", len(r)) + r for r in records))
        done = subprocess.run([PROBE, mode, str(folder), source, target], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        data = pathlib.Path(target).read_bytes()
    out, at = [], 0
    for _ in records:
        (count,) = struct.unpack_from("<I", data, at)
        ids = list(struct.unpack_from(f"<{count}i", data, at + 4))
        at += 4 + 4 * count
        if mode == "encode":
            (size,) = struct.unpack_from("<I", data, at)
            out.append((ids, data[at + 4 : at + 4 + size]))
            at += 4 + size
        elif mode == "offsets":
            flat = struct.unpack_from(f"<{2 * count}q", data, at)
            out.append((ids, list(zip(flat[::2], flat[1::2]))))
            at += 16 * count
        else:
            out.append(ids)
    return out


class Report:
    def __init__(self):
        self.failed = 0

    def compare(self, what, records, got, expected):
        differing = [i for i in range(len(records)) if got[i] != expected[i]]
        print(f"{what}: {len(records)} compared, {len(differing)} differ", flush=True)
        for i in differing[:5]:
            print(f"   {records[i]!r}\n     got      {got[i]!r}\n     expected {expected[i]!r}")
        self.failed += bool(differing)

    def check(self, what, holds):
        if not holds:
            print(f"FAILED: {what}")
            self.failed += 1


def reference(tokenizer, records):
    return tokenizer.encode_batch([r.decode("utf-8", "replace") for r in records], add_special_tokens=False)


def compare_ids(report, what, folder, tokenizer, records):
    expected = reference(tokenizer, records)
    expected = [(e.ids, tokenizer.decode(e.ids, skip_special_tokens=False).encode()) for e in expected]
    report.compare(f"{what}: ids and decoded text", records, run_probe("encode", folder, records), expected)


def compare_literal(report, what, folder, tokenizer, records):
    tokenizer.encode_special_tokens = True
    expected = [e.ids for e in reference(tokenizer, records)]
    tokenizer.encode_special_tokens = False
    report.compare(f"{what}: special tokens as plain text", records, run_probe("literal", folder, records), expected)


def compare_offsets(report, what, folder, tokenizer, records):
    """Equal to tokenizers' where NFC changes nothing (its unit is the character: ours are widened to whole characters);
    elsewhere in order, without gaps, from the first byte to the last."""
    got, kept, expected = [], [], []
    for record, e, (ids, spans) in zip(records, reference(tokenizer, records), run_probe("offsets", folder, records)):
        text = record.decode("utf-8", "replace")
        if text.encode() != record or (tokenizer.normalizer and tokenizer.normalizer.normalize_str(text) != text):
            whole = all(a <= b and b <= c for (_, b), (a, c) in zip([(0, 0)] + spans, spans) if a >= b)
            covered = not spans or (spans[0][0] == 0 and spans[-1][1] == len(record))
            ordered = all(x[0] <= y[0] and x[1] <= y[1] and x[1] >= y[0] for x, y in zip(spans, spans[1:]))
            report.check(f"offsets of {record!r}: {spans}", whole and covered and ordered)
            continue
        starts = [0]
        for c in text:
            starts.append(starts[-1] + len(c.encode()))
        inside = {}
        for i, begin in enumerate(starts[:-1]):
            for byte in range(begin, starts[i + 1]):
                inside[byte] = i
        kept.append(record)
        got.append([(inside[a], inside[b - 1] + 1) for a, b in spans])
        expected.append([tuple(o) for o in e.offsets])
    report.compare(f"{what}: offsets", kept, got, expected)


def qwen_folders(scratch):
    """The shipped files as they are, with Qwen3-VL's tokens in three dialects, and as tokenizer.json."""
    source = DATA / "qwen_tokenizer"
    plain = scratch / "qwen2"
    shutil.copytree(source, plain)
    config = json.loads((source / "tokenizer_config.json").read_text())

    flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False)
    published = scratch / "qwen3_vl"
    shutil.copytree(source, published)
    decoder = {str(151643 + i): dict(content=t, special=s, **flags) for i, (t, s) in enumerate(QWEN3_VL.items())}
    special = [t for t, s in QWEN3_VL.items() if s][1:]
    (published / "tokenizer_config.json").write_text(
        json.dumps({**config, "added_tokens_decoder": decoder, "additional_special_tokens": special})
    )
    older = scratch / "older"
    shutil.copytree(source, older)
    del config["added_tokens_decoder"], config["additional_special_tokens"]
    (older / "tokenizer_config.json").write_text(json.dumps(config))
    (older / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "extra_special_tokens": special})
    )
    (older / "added_tokens.json").write_text(json.dumps({t: 151643 + i for i, t in enumerate(QWEN3_VL)}))

    saved = scratch / "saved"
    Qwen2Tokenizer.from_pretrained(published).save_pretrained(saved)
    assert (saved / "tokenizer.json").exists() and not (saved / "vocab.json").exists()

    # The dialect of published folders: merges as text, a ByteLevel post-processor, empty affixes, all config keys.
    dialect = scratch / "dialect"
    dialect.mkdir()
    content = json.loads((saved / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    content["post_processor"] = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    (dialect / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    shutil.copy(published / "tokenizer_config.json", dialect)
    return plain, published, older, saved, dialect


def random_tokenizer(r, folder, expression):
    """A small BPE with whatever settings are understood."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=r.random() < 0.3))
    tokenizer.normalizer = r.choice([None, normalizers.NFC(), normalizers.Sequence([normalizers.NFC()])])
    steps = [
        pre_tokenizers.Split(Regex(expression), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    if r.random() < 0.3:
        steps.insert(0, pre_tokenizers.Split(Regex(EXPRESSIONS[5]), "isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if r.random() < 0.2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = Lines(r.random(), list(QWEN3_VL))
    alphabet = pre_tokenizers.ByteLevel.alphabet() if r.random() < 0.7 else []  # without: bytes that have no token
    trainer = trainers.BpeTrainer(vocab_size=r.choice([400, 900]), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([corpus.text() for _ in range(600)], trainer)
    contents = [
        "<a>",
        "<ab>",
        "<a",
        "b>",
        " sp",
        "e\u0301t\u00e9",
        "\u1100\u1161",
        "the",
        "<|x|>",
        "\u6f22",
        "\ufffd",
        "  ",
        "1",
        "\u00e9",
    ]
    added = []
    chosen = r.sample(contents, r.randint(1, len(contents)))
    for content in chosen:
        flags = {k: r.random() < 0.3 for k in ("single_word", "lstrip", "rstrip", "special")}
        # A token that begins inside white space that the one before stripped makes tokenizers panic.
        flags["rstrip"] &= not any(c.startswith(" ") for c in chosen)
        added.append(AddedToken(content, normalized=r.random() < 0.5, **flags))
    for token in added:
        tokenizer.add_tokens([token])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_file(str(folder / "tokenizer.json")), contents


def report_speed(folder, tokenizer, lines):
    """One thread each, the same texts, one run; a timing never fails the test."""
    scratch = tempfile.NamedTemporaryFile()
    for what, texts in {
        "GSM8K lines": [x.encode() for x in lines.gsm] * 3,
        "mixed lines": [lines.line() for _ in range(20000)],
        "Korean and Chinese": [(lines.korean() * 20 + lines.chinese()).encode() for _ in range(5000)],
        "one letter, 1 MB": [b"a" * 1_000_000],
        "white space, 1 MB": [b" " * 1_000_000],
    }.items():
        size = sum(map(len, texts)) / 1e6
        scratch.seek(0)
        scratch.truncate()
        scratch.write(b"".join(struct.pack("<I", len(t)) + t for t in texts))
        scratch.flush()
        ours = float(
            subprocess.run([PROBE, "time", str(folder), scratch.name], capture_output=True, text=True).stdout.split()[0]
        )
        decoded = [t.decode("utf-8", "replace") for t in texts]
        begin = time.perf_counter()
        for text in decoded:
            tokenizer.encode(text, add_special_tokens=False)
        theirs = time.perf_counter() - begin
        print(f"speed, {what}: {size / ours:.1f} MB/s, tokenizers {size / theirs:.1f} MB/s")


def main():
    report = Report()
    print(f"seed {SEED}")
    r = random.Random(SEED)
    lines = Lines(SEED, list(QWEN3_VL))
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        plain, published, older, saved, dialect = qwen_folders(scratch)
        records = [lines.line() for _ in range(NUM_LINES)] + [
            b"",
            b"\n",
            b"a" * 300_000,
            "한".encode() * 30_000,
            b" " * 30_000,
        ]
        scalars = [chr(c).encode() for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
        hf = {f: Qwen2Tokenizer.from_pretrained(f)._tokenizer for f in (plain, published, older, saved)}
        for text, id in {"<|im_end|>": 151645, "<|image_pad|>": 151655, "<think>": 151667, "</think>": 151668}.items():
            report.check(f"id of {text}", hf[published].token_to_id(text) == id)
        compare_ids(report, "vocab.json + merges.txt, Qwen3-VL tokens", published, hf[published], records)
        compare_ids(report, "the same, every code point alone", published, hf[published], scalars)
        few = records[:20000]
        compare_ids(report, "tokenizer.json", saved, hf[saved], few)
        compare_ids(
            report, "tokenizer.json as published", dialect, Tokenizer.from_file(f"{dialect}/tokenizer.json"), few
        )
        compare_ids(report, "files as shipped", plain, hf[plain], few)
        compare_ids(report, "added_tokens.json and special_tokens_map.json", older, hf[older], few)
        compare_literal(report, "tokenizer.json", saved, hf[saved], few)
        compare_offsets(report, "tokenizer.json", saved, hf[saved], few)
        for i in range(16):
            expression = i % len(EXPRESSIONS)
            folder = scratch / f"random{i}"
            tokenizer, contents = random_tokenizer(r, folder, EXPRESSIONS[expression])
            kind = Lines(r.random(), contents)
            some = [kind.line() for _ in range(1000)]
            what = f"random tokenizer {i}, expression {expression}"
            try:
                compare_ids(report, what, folder, tokenizer, some)
                compare_literal(report, what, folder, tokenizer, some)
            except RuntimeError as error:
                print(f"{what}: {error}")
                report.check("refused by name", expression in NOT_UNDERSTOOD and "split expression" in str(error))
        report_speed(saved, hf[saved], lines)
    print("0 differences" if report.failed == 0 else f"{report.failed} checks FAILED")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
