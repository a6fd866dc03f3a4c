#!/usr/bin/env python3
"""Turns GSM8K into chat JSONL: train.jsonl and heldout.jsonl in OUT, split by a fixed seed.

usage: make_gsm8k.py OUT [--source FILE] [--held-out 0.05] [--seed 0]

FILE has one JSON object a line with `question` and `answer`, as openai/grade-school-math publishes it; the default is the
part that ships with the tests. The same options give the same bytes.
"""
import argparse
import json
import os
import pathlib
import random
import sys

SOURCE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "gsm8k" / "train.jsonl"


def conversations(source):
    with open(source, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                problem = json.loads(line)
                messages = [{"role": role, "content": problem[key]} for role, key in (("user", "question"), ("assistant", "answer"))]
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(f"error: {source}, line {number + 1}: got {line.strip()[:80]!r} ({error}), expected a JSON object with"
                                 " question and answer; take train.jsonl of openai/grade-school-math") from error
            yield {"id": f"gsm8k-{number:05d}", "messages": messages}


def write(path, lines):
    """A file appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    os.replace(temporary, path)


def share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected a number between 0 and 1")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--source", type=pathlib.Path, default=SOURCE)
    parser.add_argument("--held-out", type=share, default=0.05, help="share of problems held out (default 0.05)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.source.is_file():
        raise SystemExit(f"error: --source: got {args.source}, expected a file; leave it out to use {SOURCE}")
    lines = list(conversations(args.source))
    if len(lines) < 2:
        raise SystemExit(f"error: --source: got {len(lines)} problems in {args.source}, expected at least two")
    held_out = set(random.Random(args.seed).sample(range(len(lines)), max(1, round(args.held_out * len(lines)))))
    args.out.mkdir(parents=True, exist_ok=True)
    write(args.out / "train.jsonl", [line for i, line in enumerate(lines) if i not in held_out])
    write(args.out / "heldout.jsonl", [line for i, line in enumerate(lines) if i in held_out])
    print(f"{args.out}: {len(lines) - len(held_out)} problems to train on, {len(held_out)} held out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
