"""Pictures and chats for measurements: pages drawn from GSM8K problems, asked about and answered in full.
usage: make_rows.py FOLDER SAMPLES [--tokens N] [--page EDGE | --text]  ->  FOLDER/pages/*.jpg, FOLDER/rows.jsonl (chat format of transformers)
Without options: pages of several sizes, one problem each. --page EDGE: square pages. --text: no pages. --tokens N: every sample is
filled up with further problems to just below N tokens."""
import argparse
import json
import multiprocessing
import os
import random
import textwrap

from PIL import Image, ImageDraw

HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "..", "tests", "data")
TEMPLATE_TOKENS = 28  # more than the chat template and the question take


def problems():
    with open(os.path.join(DATA, "gsm8k", "train.jsonl"), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def draw_page(path, size, text):
    page = Image.effect_noise(size, 24).convert("RGB")
    ImageDraw.Draw(page).multiline_text((16, 16), "\n".join(textwrap.wrap(text, size[0] // 8)), fill=(10, 10, 90))
    page.save(path, quality=90)


def texts_of(tokens):
    """Endless texts of `tokens` tokens, cut out of one long text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(os.path.join(DATA, "qwen3_vl_tokenizer"))
    ids = [i for text in tokenizer([p["question"] + "\n" + p["answer"] + "\n\n" for p in problems()])["input_ids"] for i in text]
    at = 0
    while True:
        part = [ids[(at + k) % len(ids)] for k in range(tokens)]
        at += tokens
        text = tokenizer.decode(part)
        while len(tokenizer(text)["input_ids"]) > tokens:  # a cut inside a word may be tokenized into more
            text = text[:-1]
        yield text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("samples", type=int)
    parser.add_argument("--tokens", type=int)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--page", type=int)
    kind.add_argument("--text", action="store_true")
    options = parser.parse_args()
    if options.text and not options.tokens:
        parser.error("--text: got no --tokens; expected how many tokens a sample has")
    random.seed(7)
    pages = os.path.join(options.folder, "pages")
    os.makedirs(pages, exist_ok=True)
    vision = (options.page // 32) ** 2 if options.page else 0
    texts = texts_of(options.tokens - TEMPLATE_TOKENS - vision) if options.tokens else None
    source = problems()
    if not options.text:
        sizes = [(options.page, options.page) if options.page else random.choice([(512, 384), (640, 448), (448, 448), (768, 320)])
                 for _ in range(options.samples)]
        with multiprocessing.Pool() as pool:
            pool.starmap(draw_page, [(os.path.join(pages, f"{i:05d}.jpg"), size, source[i % len(source)]["question"])
                                     for i, size in enumerate(sizes)], chunksize=8)
    with open(os.path.join(options.folder, "rows.jsonl"), "w", encoding="utf-8") as out:
        for i in range(options.samples):
            problem = source[i % len(source)]
            question = [{"type": "text", "text": "Read the problem and solve it step by step."}]
            if not options.text:
                question.insert(0, {"type": "image", "image": f"pages/{i:05d}.jpg"})
            answer = next(texts) if texts else problem["question"] + "\n" + problem["answer"]
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"id": str(i), "messages": messages}, ensure_ascii=False) + "\n")
    print(f"{options.samples} samples in {options.folder}")


if __name__ == "__main__":
    main()
