#!/usr/bin/env python3
"""Writes the demonstration data: real pictures, real questions, four choices each.

usage: make_digits.py OUT [--size 64] [--filter bicubic|nearest] [--seed 0] [--rounds 4] [--held-out 0.2] [--shuffle]

The pictures are the 1,797 handwritten digits of the UCI set that scikit-learn ships (Alpaydin and Kaynak, 1998; CC BY
4.0), scaled up from 8 x 8. OUT gets images/NNNN.png, train.csv and heldout.csv with the columns
id,path,question,a,b,c,d,answer; `path` is relative to OUT. A picture is in one of the two files only. The same options
give the same bytes; when OUT holds them already, nothing is done.

Choices stand in an order of their own: a number always has the letter of its remainder by four, so that a model of
random weights learns within minutes to read the picture. --shuffle places them at random: then a model must also find
the letter of what it read among the choices, which takes far more training.
"""
import argparse
import csv
import hashlib
import io
import json
import os
import pathlib
import random
import sys

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

VERSION = 2
LETTERS = "abcd"
FILTERS = {"bicubic": Image.BICUBIC, "nearest": Image.NEAREST}


def numbers(rng, right, low=0, high=9):
    """The right number, and four in a row of [low, high] that hold it, by their remainder by four."""
    start = rng.randint(max(low, right - 3), min(high - 3, right))
    return str(right), [str(n) for n in sorted(range(start, start + 4), key=lambda n: n % 4)]


def which_digit(digit, rng):
    question = rng.choice(["Which digit is shown in the picture?", "What number did the writer put down?",
                           "Read the handwritten digit. Which one is it?", "The picture shows a single digit. Name it."])
    return question, *numbers(rng, digit)


def next_number(digit, rng):
    return "Which number comes right after the digit in the picture?", *numbers(rng, digit + 1, 1, 10)


def parity_and_size(digit, rng):
    question = "Is the digit in the picture even or odd, and is it greater than four?"
    choices = {(even, big): f"{'even' if even else 'odd'}, {'greater than' if big else 'at most'} four"
               for even in (True, False) for big in (True, False)}
    return question, choices[digit % 2 == 0, digit > 4], list(choices.values())


def which_range(digit, rng):
    ranges = {"0 to 2": range(0, 3), "3 to 4": range(3, 5), "5 to 7": range(5, 8), "8 to 9": range(8, 10)}
    right = next(name for name, values in ranges.items() if digit in values)
    return "In which range is the handwritten digit?", right, list(ranges)


# Most questions ask for the digit itself; the others need one step more.
QUESTIONS = [(which_digit, 17), (next_number, 1), (parity_and_size, 1), (which_range, 1)]


def row(number, round_number, digit, rng, shuffle):
    makers, weights = zip(*QUESTIONS)
    question, right, choices = rng.choices(makers, weights)[0](digit, rng)
    if shuffle:
        rng.shuffle(choices)
    return [f"digit-{number:04d}-{round_number}", f"images/{number:04d}.png", question, *choices,
            LETTERS[choices.index(right)]]


def split(labels, share, rng):
    """Picture numbers to train on and to hold out, the same share of each digit."""
    train, held_out = [], []
    for digit in range(10):
        members = [i for i, label in enumerate(labels) if label == digit]
        rng.shuffle(members)
        count = round(share * len(members))
        held_out += members[:count]
        train += members[count:]
    return sorted(train), sorted(held_out)


def write(path, data):
    """A file appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def csv_bytes(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "path", "question", *LETTERS, "answer"])
    writer.writerows(rows)
    return text.getvalue().encode()


def png_bytes(levels, size, resample):
    image = Image.fromarray(levels).resize((size, size), resample).convert("RGB")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected at least 1")
    return value


def share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected a number between 0 and 1")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", type=positive, default=64, help="sides of a picture, in pixels (default 64)")
    parser.add_argument("--filter", choices=FILTERS, default="bicubic", help="how pictures are scaled up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=positive, default=4, help="questions a training picture (default 4)")
    parser.add_argument("--held-out", type=share, default=0.2, help="share of pictures held out (default 0.2)")
    parser.add_argument("--shuffle", action="store_true", help="choices in random order")
    args = parser.parse_args()

    options = {"version": VERSION, "size": args.size, "filter": args.filter, "seed": args.seed, "rounds": args.rounds,
               "held_out": args.held_out, "shuffle": args.shuffle}
    marker = args.out / "digits.json"
    if marker.exists() and json.loads(marker.read_text()).get("options") == options:
        print(f"{args.out}: complete, nothing to do")
        return 0
    marker.unlink(missing_ok=True)
    (args.out / "images").mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    levels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 in the set
    sums = hashlib.sha256()
    for number, picture in enumerate(levels):
        data = png_bytes(picture, args.size, FILTERS[args.filter])
        write(args.out / "images" / f"{number:04d}.png", data)
        sums.update(data)

    rng = random.Random(args.seed)
    labels = [int(label) for label in digits.target]
    train, held_out = split(labels, args.held_out, rng)
    files = {"train.csv": [row(n, r, labels[n], rng, args.shuffle) for r in range(args.rounds) for n in train],
             "heldout.csv": [row(n, 0, labels[n], rng, args.shuffle) for n in held_out]}
    for name, rows in files.items():
        data = csv_bytes(rows)
        write(args.out / name, data)
        sums.update(data)
    # Last: it says that everything else is there.
    write(marker, json.dumps({"options": options, "sha256": sums.hexdigest()}, indent=1).encode() + b"\n")
    print(f"{args.out}: {len(levels)} pictures, {len(files['train.csv'])} questions to train on,"
          f" {len(files['heldout.csv'])} held out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
