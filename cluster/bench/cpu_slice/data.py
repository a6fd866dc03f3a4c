"""Tokenizer, pictures and packing beside `tokenizers` and transformers' processor on the same inputs, on 1 and 2 threads."""
import json
import pathlib
import struct
import subprocess
import sys

from ours import BUILD, ENV, PEER_ENV, ROOT, TOKENIZER, chat, locked, median, write_conversations

PROBES = BUILD / "tests/dataio"
PICTURES = [("JPEG", 256, 256, 60), ("JPEG", 640, 480, 40), ("JPEG", 1024, 768, 20), ("JPEG", 2048, 1536, 8),
            ("PNG", 64, 64, 200), ("PNG", 640, 480, 24), ("PNG", 1024, 1024, 10)]
MIN_PIXELS, MAX_PIXELS = 65536, 1048576


def peer(*arguments, threads=1):
    env = {**PEER_ENV, "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false", "RAYON_NUM_THREADS": str(threads)}
    script = str(pathlib.Path(__file__).with_name("peer_data.py"))
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(options, ours, theirs):
    """Medians of both, measured in turn."""
    a, b = [], []
    for _ in range(options.rounds):
        a.append(ours())
        b.append(theirs())
    return median(a), median(b)


def row(what, threads, ours, theirs, unit):
    return f"| {what} | {threads} | {ours:,.1f} | {theirs:,.1f} | **{ours / theirs:.2f}** | {unit} |"


def texts():
    questions = [json.loads(line) for line in (ROOT / "tests/data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()]
    prose = [part for item in questions for part in (item["question"], item["answer"])]
    code = [path.read_text(encoding="utf-8") for folder in ("model", "dataio", "trainer") for path in sorted((ROOT / folder).rglob("*.cpp"))]
    return {"GSM8K, one call a text": prose * (1 + 1_000_000 // sum(map(len, prose))), "C++ sources, one call a file": code * 2}


def tokenizer_rows(folder, options):
    for what, records in texts().items():
        raw = [text.encode() for text in records]
        megabytes = sum(map(len, raw)) / 1e6
        (folder / "texts.json").write_text(json.dumps(records))
        (folder / "texts.bin").write_bytes(b"".join(struct.pack("<I", len(r)) + r for r in raw))
        for threads in (1, 2):
            def ours(threads=threads):
                command = [str(PROBES / "tokenizer_probe"), "time", TOKENIZER, str(folder / "texts.bin"), str(threads)]
                seconds, count = subprocess.run(command, capture_output=True, text=True, check=True, env=ENV).stdout.split()
                counts.add(int(count))
                return megabytes / float(seconds)

            def theirs(threads=threads):
                answer = peer("tokenizer", TOKENIZER, folder / "texts.json", threads=threads)
                counts.add(answer["made"])
                return megabytes / answer["seconds"]

            counts = set()
            figures = in_turn(options, ours, theirs)
            if len(counts) != 1:
                raise SystemExit(f"tokenizer, {what}: numbers of tokens differ: {counts}")
            yield row(f"tokenizer: {what}", threads, *figures, "MB/s")


def picture_files(folder, kind, width, height, count):
    """Smooth colours with some noise: compresses about as photographs do."""
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(20261121)
    paths = []
    for i in range(count):
        coarse = rng.integers(0, 256, (max(2, height // 32), max(2, width // 32), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{kind}-{width}x{height}-{i}.{'jpg' if kind == 'JPEG' else 'png'}")
        Image.fromarray(noisy).save(paths[-1], **({"quality": 90} if kind == "JPEG" else {}))
    return [str(path) for path in paths]


def processor_folder(folder):
    """The family's rules, with limits that leave most of the sizes below as they are."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessor
    out = folder / "processor"
    family = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen2VLImageProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, **family).save_pretrained(out)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(out)
    return str(out)


def picture_rows(folder, processor, options):
    jobs, answers = folder / "jobs.jsonl", folder / "answers"
    for kind, width, height, count in PICTURES:
        paths = picture_files(folder, kind, width, height, count)
        size = sum(pathlib.Path(p).stat().st_size for p in paths) // count
        for threads in (1, 2):
            def ours(threads=threads):
                jobs.write_text(json.dumps({"kind": "bench", "paths": paths, "threads": threads, "repeats": 4, "folder": processor}) + "\n")
                subprocess.run([str(PROBES / "vision_probe"), str(jobs), str(answers)], check=True, env=ENV)
                return json.loads(answers.read_text())["images_per_s"]

            figures = in_turn(options, ours, lambda threads=threads: count / peer("pictures", processor, threads, *paths)["seconds"])
            yield row(f"picture: {kind} {width} x {height}, {size / 1e3:.0f} kB", threads, *figures, "pictures/s")


class DatasetProbe:
    def __init__(self):
        self.process = subprocess.Popen([str(PROBES / "dataset_probe")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)

    def ask(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        lines = list(iter(self.process.stdout.readline, "done\n"))
        answer = json.loads(lines[0])
        if "error" in answer:
            raise SystemExit(answer["error"])
        return answer


def packing_rows(folder, processor, options):
    probe = DatasetProbe()
    number = iter(range(1000))
    for kind, width, height, count in (("JPEG", 640, 480, 160), ("PNG", 64, 64, 600)):
        paths = picture_files(folder, kind, width, height, count)
        chats = str(folder / f"{kind}.jsonl")
        write_conversations(chats, [chat("What is in the picture, and where?", "A smooth surface with some noise.", p) for p in paths])
        for store in ("encoded", "resized"):
            for threads in (1, 2):
                def ours(threads=threads, store=store):
                    report = probe.ask(do="pack", folder=processor, path=chats, cache=str(folder / f"cache{next(number)}"), reader_threads=threads,
                                       store_images=store, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, max_bad_share=0)
                    return report["images"] / report["seconds"]

                figures = in_turn(options, ours, lambda threads=threads: count / peer("samples", processor, threads, chats)["seconds"])
                yield row(f"packing to disk ({store}): {kind} {width} x {height}", threads, *figures, "samples/s")


def part(folder, options):
    yield "Ours: threads of one process. Peer: `tokenizers` encode_batch_fast on as many threads; transformers' processor on bytes of files in"
    yield "as many worker processes of one thread (what a DataLoader does); for packing, the processor on the same conversations (it writes nothing)."
    yield ""
    yield "| what | threads | ours | peer | ratio | unit |"
    yield "|---|---|---|---|---|---|"
    processor = processor_folder(folder)
    for rows in (tokenizer_rows(folder, options), picture_rows(folder, processor, options), packing_rows(folder, processor, options)):
        with locked(options.lock):
            yield from rows
