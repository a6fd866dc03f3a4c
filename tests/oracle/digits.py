"""Checks launch/make_digits.py: deterministic, done once, no picture on both sides, exactly one right choice a row.

usage: digits.py MAKE_DIGITS
"""
import collections
import csv
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MAKE_DIGITS = pathlib.Path(sys.argv[1])


def make(folder, *options):
    command = [sys.executable, MAKE_DIGITS, folder, *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def is_right(question, choice, digit):
    """Judges a choice from its words alone."""
    if "right after" in question:
        return int(choice) == digit + 1
    if "range" in question:
        low, high = map(int, choice.split(" to "))
        return low <= digit <= high
    if "even or odd" in question:
        parity, size = choice.split(", ")
        return (parity == "even") == (digit % 2 == 0) and (size == "greater than four") == (digit > 4)
    return int(choice) == digit


def rows_of(folder, name):
    with open(folder / name, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def main():
    digits = load_digits()
    with tempfile.TemporaryDirectory() as temporary:
        first, second = pathlib.Path(temporary, "first"), pathlib.Path(temporary, "second")
        make(first, "--size", "48")
        make(second, "--size", "32")
        make(second, "--size", "48")  # other options: made anew
        assert contents(first) == contents(second), "the same options gave other bytes"
        before = (first / "train.csv").stat().st_mtime_ns
        assert "nothing to do" in make(first, "--size", "48")
        assert (first / "train.csv").stat().st_mtime_ns == before, "a second run wrote again"

        sides = {name: rows_of(first, name + ".csv") for name in ("train", "heldout")}
        for name, rows in sides.items():
            assert len({row["id"] for row in rows}) == len(rows), "ids repeat"
            for row in rows:
                digit = int(digits.target[int(row["path"][len("images/"):-len(".png")])])
                right = [letter for letter in "abcd" if is_right(row["question"], row[letter], digit)]
                assert right == [row["answer"]], row
                assert len({row[letter] for letter in "abcd"}) == 4, row
            answers = collections.Counter(row["answer"] for row in rows)
            assert min(answers.values()) > 0.15 * len(rows), answers  # ten digits over four letters
        train, held_out = ({row["path"] for row in rows} for rows in sides.values())
        assert not train & held_out, "a picture is on both sides"
        assert len(train | held_out) == len(digits.images) == 1797
        shares = [np.mean([digits.target[int(path[7:11])] == digit for path in held_out]) for digit in range(10)]
        overall = np.bincount(digits.target) / len(digits.target)
        assert np.abs(np.array(shares) - overall).max() < 0.005, "not stratified"

        image = Image.open(first / "images" / "0011.png")
        assert image.mode == "RGB" and image.size == (48, 48), image
        small = np.asarray(image.convert("L").resize((8, 8), Image.BOX), float) / 255 * 16
        assert np.corrcoef(small.ravel(), digits.images[11].ravel())[0, 1] > 0.95, "another picture"
        print(f"digits: {len(train)} pictures with {len(sides['train'])} questions, {len(held_out)} held out")


if __name__ == "__main__":
    main()
