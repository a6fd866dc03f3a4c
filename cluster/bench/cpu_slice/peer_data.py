"""The peer of data.py, one measurement a process (thread pools are sized once):
    peer_data.py tokenizer FOLDER TEXTS.json      TOKENIZERS_PARALLELISM and RAYON_NUM_THREADS say how many threads
    peer_data.py pictures FOLDER WORKERS FILE...  worker processes with one thread each, as a DataLoader has them
    peer_data.py samples FOLDER WORKERS CHATS     the processor on whole conversations: text, ids and pixels
Prints JSON: seconds of the best of three passes, after one that is not counted, and what was made."""
import json
import multiprocessing
import sys
import time

REPEATS = 3


def best_of(work):
    counts = work()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": min(seconds), "made": counts}))


def tokenizer(folder, texts):
    from transformers import AutoTokenizer
    backend = AutoTokenizer.from_pretrained(folder)._tokenizer
    with open(texts, encoding="utf-8") as file:
        records = json.load(file)
    best_of(lambda: sum(len(e.ids) for e in backend.encode_batch_fast(records, add_special_tokens=False)))


prepare = None


def start_worker(kind, folder):
    global prepare
    import torch
    from transformers import AutoTokenizer, Qwen2VLImageProcessor
    from transformers.image_utils import load_image
    torch.set_num_threads(1)
    pictures = Qwen2VLImageProcessor.from_pretrained(folder)
    words = AutoTokenizer.from_pretrained(folder)

    def picture(path):
        return pictures(images=[load_image(path)], return_tensors="pt")

    def sample(line):
        text = ""
        for message in json.loads(line)["messages"]:
            body = ""
            for part in message["content"]:
                if part["type"] == "text":
                    body += part["text"]
                else:
                    count = int(picture(part["image"])["image_grid_thw"].prod()) // pictures.merge_size**2
                    body += f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
            text += f"<|im_start|>{message['role']}\n{body}<|im_end|>\n"
        return len(words(text)["input_ids"])

    prepare = (lambda path: picture(path)["pixel_values"].shape[0]) if kind == "pictures" else sample


def call(item):
    return prepare(item)


def in_workers(kind, folder, workers, items):
    with multiprocessing.get_context("fork").Pool(workers, start_worker, (kind, folder)) as pool:
        best_of(lambda: sum(pool.map(call, items, chunksize=max(1, len(items) // (8 * workers)))))


def main():
    kind, folder = sys.argv[1:3]
    if kind == "tokenizer":
        tokenizer(folder, sys.argv[3])
    elif kind == "pictures":
        in_workers(kind, folder, int(sys.argv[3]), sys.argv[4:])
    else:
        with open(sys.argv[4], encoding="utf-8") as file:
            in_workers(kind, folder, int(sys.argv[3]), file.readlines())


if __name__ == "__main__":
    main()
