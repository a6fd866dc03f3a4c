"""Damaged, foreign and newer checkpoints, and configs that have changed since."""
import os
import random
import shutil

from catalogue import STAGE, Base, Case, run_all
from harness import expect, file_hash

NEWEST, OLDER = "run/checkpoints/all/step_00000004", "run/checkpoints/all/step_00000002"
RNG = random.Random(7)


def goes_on(name, code, *words, settings=(), copies=("run",), **more):
    """The finished run of 4 steps, asked for 6."""
    keys = {"stages": [{**STAGE, "steps": 6}], "save": {"every": 2, "keep": 3, "export_model": False}}
    return Case(name, code, *words, copies=copies, changes=keys, settings=settings, **more)


def files(folder, ending):
    return [f"{folder}/{f}" for f in sorted(os.listdir(folder)) if f.endswith(ending)]


def flip(path, where=None):
    with open(path, "r+b") as file:
        at = RNG.randrange(os.path.getsize(path)) if where is None else where
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << RNG.randrange(8)]))


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) * 2 // 3)


def spoil(ending, how, *folders):
    def prepare(folder):
        for checkpoint in folders or (NEWEST,):
            how(files(f"{folder}/{checkpoint}", ending)[0])
    return prepare


def text_of(edit):
    def how(path):
        with open(path, "rb") as file:
            data = file.read()
        with open(path, "wb") as file:
            file.write(edit(data))
    return how


def older_is_kept(folder, said):
    """Step 2 is still there, steps 4 and 6 are new."""
    left = sorted(os.listdir(f"{folder}/run/checkpoints/all"))
    for name in ("step_00000002", "step_00000004", "step_00000006"):
        expect(name in left, f"{name} is not among {left}\n{said}")


def falls_back(name, ending, how, *words):
    return goes_on(name, 0, "the one before it is tried", "goes on from", "step_00000002", "stage all finished at step 6", *words,
                   prepare=spoil(ending, how), after=older_is_kept, grammar=False)


def damage_cases():
    garbage = text_of(lambda d: bytes(RNG.randrange(256) for _ in d))
    return [
        falls_back("bit flipped in a shard", ".safetensors", flip, "xxh3"),
        falls_back("bit flipped in an index", "shard-0.json", flip),
        falls_back("bit flipped in the manifest", "manifest.json", flip),
        falls_back("shard truncated", ".safetensors", cut, "bytes, expected"),
        falls_back("shard missing", ".safetensors", os.remove, "No such file"),
        falls_back("manifest garbage", "manifest.json", garbage),
        falls_back("manifest empty", "manifest.json", text_of(lambda d: b"")),
        falls_back("manifest of nested lists", "manifest.json", text_of(lambda d: b"[" * 200000)),
        goes_on("manifest missing", 0, "goes on from", "step_00000002", prepare=spoil("manifest.json", os.remove), grammar=False),
        goes_on("every checkpoint damaged", 5, "got 2 and none that can be used", "--resume never", prepare=spoil(".safetensors", flip, NEWEST, OLDER)),
        goes_on("checkpoint of a newer version", 5, "schema_version: got 99", "newer version", arguments=["--resume", f"FOLDER/{NEWEST}"],
                prepare=spoil("manifest.json", text_of(lambda d: d.replace(b'"schema_version":1', b'"schema_version":99').replace(b'"schema_version": 1', b'"schema_version": 99')))),
        goes_on("damaged checkpoint by name", 5, "xxh3", "damaged", arguments=["--resume", f"FOLDER/{NEWEST}"], prepare=spoil(".safetensors", flip)),
        goes_on("unfinished save is cleared", 0, "goes on from", "step_00000004", grammar=False, prepare=lambda f: os.makedirs(f"{f}/{NEWEST}.tmp"),
                after=lambda f, said: expect(not os.path.exists(f"{f}/{NEWEST}.tmp"), "step_00000004.tmp is still there")),
    ]


def name_cases():
    return [
        goes_on("--resume of nothing", 5, "checkpoint", "/nowhere", arguments=["--resume", "/nowhere"]),
        goes_on("--resume of a data folder", 5, "manifest", arguments=["--resume", "FOLDER"]),
        goes_on("--resume of a file", 5, "expected auto, never, or the folder", arguments=["--resume", "FOLDER/config.yaml"]),
        goes_on("--resume of an empty run", 5, "--resume", "without a complete checkpoint", arguments=["--resume", "FOLDER/empty"],
                prepare=lambda f: os.makedirs(f"{f}/empty/checkpoints")),
        goes_on("--resume without a value", 2, "--resume", "expected auto, never", arguments=["--resume="]),
        goes_on("--checkpoint of nothing", 5, "/nowhere", arguments=["evaluate", "--checkpoint", "/nowhere"]),
        goes_on("evaluate without weights", 5, "neither a checkpoint", "model.path", arguments=["evaluate"], prepare=lambda f: shutil.rmtree(f"{f}/run")),
        goes_on("export of another model", 5, "shape", arguments=["export", "--checkpoint", f"FOLDER/{NEWEST}"], settings=["model.decoder.ffn=96"]),
        goes_on("stage that the config lacks", 5, "stage all", "rest", arguments=["--resume", f"FOLDER/{NEWEST}"], settings=["stages.all.name=rest"]),
    ]


def drift_cases():
    def other_data(folder):
        with open(f"{folder}/data/train.csv", "a", encoding="utf-8") as file:
            with open(f"{folder}/data/train.csv", encoding="utf-8") as old:
                file.write(old.readlines()[-1])
    return [
        goes_on("another model on resume", 2, "another model or seed", "model.decoder.layers: was 2, is 3", "--resume never", settings=["model.decoder.layers=3"]),
        goes_on("another seed on resume", 2, "seed: was 7, is 8", settings=["seed=8"]),
        goes_on("another row length on resume", 2, "stages.0.seq_len: was 512, is 256", "a stage of its own", settings=["stages.all.seq_len=256"]),
        goes_on("other globs on resume", 2, "stages.0.trainable", settings=["stages.all.trainable=[decoder.**]"]),
        goes_on("other data on resume", 2, "content of the datasets", copies=("run", "data"), prepare=other_data),
        goes_on("another rate on resume", 0, "optimizer.lr: was 0.001, is 0.01", "stage all finished at step 6", settings=["optimizer.lr=0.01"], grammar=False),
    ]


def main():
    base = Base()
    base.finish_run()
    before = {p: file_hash(p) for p in files(f"{base.folder}/{NEWEST}", "")}
    run_all(base, damage_cases() + name_cases() + drift_cases(), check=lambda: expect(
        before == {p: file_hash(p) for p in files(f"{base.folder}/{NEWEST}", "")}, "the shared checkpoint has changed: a case wrote outside its folder"))


if __name__ == "__main__":
    main()
