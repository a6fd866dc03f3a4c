"""Pictures and chats for measurements: pages drawn from GSM8K problems, asked about and answered in full.
usage: make_rows.py FOLDER SAMPLES  ->  FOLDER/pages/*.jpg, FOLDER/rows.jsonl (chat format of transformers)"""
import json
import os
import random
import sys
import textwrap

from PIL import Image, ImageDraw

folder, count = sys.argv[1], int(sys.argv[2])
source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "data", "gsm8k", "train.jsonl")
problems = [json.loads(line) for line in open(source, encoding="utf-8")]
random.seed(7)
os.makedirs(os.path.join(folder, "pages"), exist_ok=True)
with open(os.path.join(folder, "rows.jsonl"), "w", encoding="utf-8") as out:
    for i in range(count):
        problem = problems[i % len(problems)]
        width, height = random.choice([(512, 384), (640, 448), (448, 448), (768, 320)])
        page = Image.effect_noise((width, height), 24).convert("RGB")
        ImageDraw.Draw(page).multiline_text((16, 16), "\n".join(textwrap.wrap(problem["question"], width // 8)), fill=(10, 10, 90))
        name = f"pages/{i:05d}.jpg"
        page.save(os.path.join(folder, name), quality=90)
        messages = [
            {"role": "user", "content": [{"type": "image", "image": name}, {"type": "text", "text": "Read the problem and solve it step by step."}]},
            {"role": "assistant", "content": problem["question"] + "\n" + problem["answer"]},
        ]
        out.write(json.dumps({"id": str(i), "messages": messages}, ensure_ascii=False) + "\n")
print(f"{count} samples in {folder}")
