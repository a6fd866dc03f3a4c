"""Real pictures with questions that can be checked, for real_run.py: handwritten digits, pages of Korean and English text, photographs.
usage: real_data.py FOLDER [--packages FOLDER] [--pages 900] [--photos 700] [--held-out 200] [--seed 0]
FOLDER gets pictures, digits.csv, pages.csv, photographs.csv (id,path,question,a,b,c,d,answer), headings.jsonl (chat format) and heldout.csv.
  digits        scikit-learn's 1,797 handwritten digits, by launch/make_digits.py
  pages         real_pages.txt in Nanum Gothic (Korean and English) and DejaVu: which heading, which languages, how many lines below it
  photographs   crops of eight photographs (two of scikit-learn, six of scikit-image): of which one, and which colour is strongest
Held out: other pictures of digits, pages with sentences that no training page has, and crops of strips of the photographs that no
training crop touches. As in make_digits.py, an answer has a letter of its own, so that random weights learn to read within minutes.
Two packages bring what a machine may lack, a Korean font and the photographs; nothing of them is run:
  pip install --no-deps --target .cache/real_packages koreanize-matplotlib==0.1.1 scikit-image==0.25.2"""
import argparse
import csv
import hashlib
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys

from PIL import Image, ImageDraw, ImageFont, ImageStat

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LETTERS = "abcd"
PAGE = (128, 128)
CROP = 96
# Name, package, file. A photograph's letter is its place by four.
PHOTOGRAPHS = [("a temple", "sklearn", "datasets/images/china.jpg"), ("a flower", "sklearn", "datasets/images/flower.jpg"),
               ("a cat", "skimage", "data/chelsea.png"), ("a cup of coffee", "skimage", "data/coffee.png"),
               ("an astronaut", "skimage", "data/astronaut.png"), ("a rocket", "skimage", "data/rocket.jpg"),
               ("galaxies", "skimage", "data/hubble_deep_field.jpg"), ("a motorcycle", "skimage", "data/motorcycle_left.png")]
STRIP = (0.50, 0.76)  # held out, as shares of the width
LANGUAGES = {("ko", "ko"): "Korean only", ("en", "en"): "English only", ("ko", "en"): "Korean above English", ("en", "ko"): "English above Korean"}
COLOURS = ["red", "green", "blue", "none of them"]


def package_file(packages, package, name):
    folders = [packages / package] if packages else []
    spec = importlib.util.find_spec(package)
    folders += [pathlib.Path(place) for place in (spec.submodule_search_locations or [] if spec else [])]
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if not found:
        sys.exit(f"{package}/{name}: got no such file in {', '.join(map(str, folders)) or 'any installed package'}; expected the package's; "
                 "see the pip command in real_data.py --help and name its folder with --packages")
    return found


def texts():
    """(kind, language) -> lines of real_pages.txt."""
    out = {}
    for line in (HERE / "real_pages.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, language, text = line.split(" ", 2)
            out.setdefault((kind, language), []).append(text)
    return out


def choices_of(values, right, rng):
    """Four of `values` with `right` among them, each at the letter of its place by four; and the letter of `right`."""
    place = values.index(right)
    chosen = [right if place % 4 == k else rng.choice(values[k::4]) for k in range(4)]
    return [*chosen, LETTERS[place % 4]]


class Pages:
    def __init__(self, packages):
        nanum = [package_file(packages, "koreanize_matplotlib", f"fonts/NanumGothic{w}.ttf") for w in ("", "Bold", "Light")]
        latin = [package_file(packages, "matplotlib", f"mpl-data/fonts/ttf/DejaVu{w}.ttf") for w in ("Sans", "Serif", "SansMono")]
        self.fonts = {"ko": nanum, "en": nanum + latin}
        self.texts = texts()
        self.headings = self.texts["heading", "ko"] + self.texts["heading", "en"]

    def draw(self, path, rng, held_out):
        """A page; what it says: heading, (language of heading, language of the lines), number of lines."""
        languages = rng.choice(list(LANGUAGES))
        heading = rng.choice(self.texts["heading", languages[0]])
        sentences = self.texts["sentence", languages[1]]
        cut = len(sentences) * 3 // 4
        count = rng.randint(1, 4)
        lines = rng.sample(sentences[cut:], min(count, len(sentences) - cut)) if held_out else rng.sample(sentences[:cut], count)
        dark = rng.random() < 0.8
        ink, paper = (rng.randint(0, 90), rng.randint(200, 255)) if dark else (rng.randint(200, 255), rng.randint(0, 90))
        page = Image.new("L", PAGE, paper)
        pen = ImageDraw.Draw(page)
        pen.text((rng.randint(4, 12), rng.randint(2, 10)), heading, fill=ink,
                 font=ImageFont.truetype(str(rng.choice(self.fonts[languages[0]][:2])), rng.randint(24, 28)))
        font = ImageFont.truetype(str(rng.choice(self.fonts[languages[1]])), 12)
        for k, line in enumerate(lines):
            pen.text((rng.randint(3, 7), 48 + 19 * k), line, fill=ink, font=font)  # what is longer than a line is cut off by the edge
        page.quantize(16).save(path, optimize=True)
        return heading, languages, len(lines)

    def question(self, facts, rng):
        heading, languages, lines = facts
        kind = rng.choices(["heading", "languages", "lines"], [5, 2, 3])[0]
        if kind == "heading":
            return kind, "Which word is the heading of the page?", choices_of(self.headings, heading, rng)
        if kind == "languages":
            return kind, "In which languages is the page written?", choices_of(list(LANGUAGES.values()), LANGUAGES[languages], rng)
        return kind, "How many lines of text stand below the heading?", choices_of(["1", "2", "3", "4"], str(lines), rng)


def crop_of(photograph, path, rng, held_out):
    """A crop, upright or mirrored, of the held-out strip or of what lies beside it."""
    width, height = photograph.size
    begin, end = (int(share * width) for share in STRIP)
    edge = rng.randint(CROP, CROP + 16)
    left, right = (begin, end) if held_out else ((0, begin) if rng.random() < STRIP[0] / (STRIP[0] + 1 - STRIP[1]) else (end, width))
    edge = min(edge, right - left, height)
    x, y = rng.randint(left, right - edge), rng.randint(0, height - edge)
    crop = photograph.crop((x, y, x + edge, y + edge)).resize((CROP, CROP), Image.BICUBIC)
    crop = crop.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
    crop.save(path, quality=85)
    return crop


def photograph_question(name, crop, rng):
    means = ImageStat.Stat(crop).mean
    first, second = sorted(means)[2], sorted(means)[1]
    clear = first - second >= 12 or max(means) - min(means) <= 6  # else nobody could say
    if rng.random() < 0.25 and clear:
        right = COLOURS[means.index(first)] if first - second >= 12 else COLOURS[3]
        return "colour", "Which of red, green and blue is strongest in the picture?", choices_of(COLOURS, right, rng)
    return "subject", "Of what is this a part?", choices_of([p[0] for p in PHOTOGRAPHS], name, rng)


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "path", "question", *LETTERS, "answer"])
        writer.writerows(rows)


def digits(out, count):
    """Rows to train on and held out, with paths relative to `out`."""
    subprocess.run([sys.executable, ROOT / "launch" / "make_digits.py", out / "digits"], check=True, stdout=subprocess.DEVNULL)
    for picture in (out / "digits" / "images").iterdir():
        Image.open(picture).convert("L").save(picture, optimize=True)  # a third of the bytes
    parts = []
    for name in ("train.csv", "heldout.csv"):
        with open(out / "digits" / name, encoding="utf-8") as file:
            parts.append([[row[0], f"digits/{row[1]}", *row[2:]] for row in list(csv.reader(file))[1:]])
        (out / "digits" / name).unlink()
    (out / "digits" / "digits.json").unlink()  # it would say that the folder holds what make_digits.py wrote
    random.Random(0).shuffle(parts[1])
    return parts[0], parts[1][:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--packages", type=pathlib.Path, help="where pip put what is not installed")
    parser.add_argument("--pages", type=int, default=900)
    parser.add_argument("--photos", type=int, default=700)
    parser.add_argument("--held-out", type=int, default=200, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out, rng = args.folder, random.Random(args.seed)
    for name in ("pages", "photographs"):
        (out / name).mkdir(parents=True, exist_ok=True)
    rows, held_out = {}, []
    rows["digits"], held_digits = digits(out, args.held_out)
    held_out += held_digits

    pages = Pages(args.packages)
    rows["pages"], chats = [], []
    for n in range(args.pages + args.held_out):
        path, is_held = f"pages/{n:04d}.png", n >= args.pages
        facts = pages.draw(out / path, rng, is_held)
        for _ in range(1 if is_held else 4):
            kind, question, answers = pages.question(facts, rng)
            (held_out if is_held else rows["pages"]).append([f"page-{n:04d}-{kind}", path, question, *answers])
        if not is_held:
            content = [{"type": "image", "image": path}, {"type": "text", "text": "Write down the heading."}]
            chats.append({"id": f"read-{n:04d}", "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": facts[0]}]})
    with open(out / "headings.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats)

    photographs = [(name, Image.open(package_file(args.packages, package, file)).convert("RGB")) for name, package, file in PHOTOGRAPHS]
    rows["photographs"] = []
    for n in range(args.photos + args.held_out):
        path, is_held = f"photographs/{n:04d}.jpg", n >= args.photos
        name, photograph = photographs[n % len(photographs)]
        kind, question, answers = photograph_question(name, crop_of(photograph, out / path, rng, is_held), rng)
        (held_out if is_held else rows["photographs"]).append([f"photograph-{n:04d}-{kind}", path, question, *answers])

    for name, lines in rows.items():
        write_csv(out / f"{name}.csv", lines)
    write_csv(out / "heldout.csv", held_out)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    sums = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in files)).hexdigest()
    print(f"{out}: {', '.join(f'{len(lines)} questions on {name}' for name, lines in rows.items())}, {len(chats)} chats, {len(held_out)} held out; "
          f"{sum(p.stat().st_size for p in files) / 1e6:.1f} MB, sha256 {sums[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
