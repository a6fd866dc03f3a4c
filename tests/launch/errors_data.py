"""Wrong CSV and JSON lines, pictures of every kind of damage, and places that cannot be written."""
import csv
import json
import os
import struct
import zlib

from catalogue import STAGE, Base, Case, run_all


def rows_of(folder, name="train.csv"):
    with open(f"{folder}/data/{name}", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(folder, rows, name="train.csv", fields=None):
    with open(f"{folder}/data/{name}", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edit_rows(edit):
    def prepare(folder):
        rows = rows_of(folder)
        edit(rows)
        write_rows(folder, rows)
    return prepare


def text(change, name="data/train.csv"):
    """change(bytes) -> bytes of the file."""
    def prepare(folder):
        with open(f"{folder}/{name}", "rb") as file:
            data = file.read()
        with open(f"{folder}/{name}", "wb") as file:
            file.write(change(data))
    return prepare


def pictures(count, spoil):
    """spoil(path) for the pictures of the first `count` rows."""
    def prepare(folder):
        for row in rows_of(folder)[:count]:
            spoil(f"{folder}/data/{row['path']}")
    return prepare


def put(data):
    def spoil(path):
        os.remove(path)
        with open(path, "wb") as file:
            file.write(data)
    return spoil


def png(width, height):
    """A valid header that promises more than it holds."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


def long_strip(path):
    from PIL import Image
    Image.new("RGB", (2100, 10), (200, 30, 30)).save(path)


def into_folder(path):
    os.remove(path)
    os.mkdir(path)


def fifo(path):
    os.remove(path)
    os.mkfifo(path)


def data(name, code, *words, **more):
    return Case(name, code, *words, copies=("data",), **more)


def bad(name, reason, spoil, *words, **more):
    """Three of 24 pictures: the second one is beyond the allowed share and ends the run; the reason is counted, the first ones are named."""
    return data(name, 3, f"{reason}: 2", "data.max_bad_share = 0.05", "bad.jsonl", *words, prepare=pictures(3, spoil), **more)


def skipped(folder, said):
    listed = [f for f in os.listdir(f"{folder}/packs") if f.endswith(".bad.jsonl")]
    with open(f"{folder}/packs/{listed[0]}", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert len(lines) == 1 and lines[0]["reason"] == "image_missing" and lines[0]["detail"], lines


def csv_cases():
    return [
        data("CSV column missing", 3, "CSV columns", "question", "train.csv", prepare=text(lambda d: d.replace(b"question", b"frage", 1))),
        data("CSV empty", 3, "empty file", "train.csv", prepare=text(lambda d: b"")),
        data("CSV of a header only", 3, "without records", "train.csv", prepare=text(lambda d: d.split(b"\n")[0] + b"\n")),
        data("CSV column twice", 3, "more than once", prepare=text(lambda d: d.replace(b"question", b"id", 1))),
        data("CSV that is UTF-16", 3, "UTF-16", prepare=text(lambda d: d.decode().encode("utf-16"))),
        data("CSV that is a picture", 3, "train.csv", prepare=text(lambda d: png(4, 4))),
        data("CSV that is zeros", 3, "train.csv", prepare=text(lambda d: b"\0" * 5000)),
        data("CSV absent", 3, "No such file", "train.csv", "data.sets", prepare=lambda f: os.remove(f"{f}/data/train.csv")),
        data("CSV is a folder", 3, "something that is not a file", "data.sets", settings=lambda f: [f"data.sets.train.path={f}/data", "data.sets.train.kind=vqa_csv"]),
        data("bad answer letters", 3, "answer_invalid: 2", "got \"x\", expected a letter from a to d", "row 2",
             prepare=edit_rows(lambda rows: [r.update(answer="x") for r in rows[:3]])),
        data("one bad answer under fail", 3, "answer_invalid", "row 4", "data.on_bad_sample", settings=["data.on_bad_sample=fail"],
             prepare=edit_rows(lambda rows: rows[2].update(answer="7"))),
        data("too few fields", 3, "csv_columns: 2", "got 3 fields, expected 8", prepare=text(lambda d: d + b"\na,b,c\nd,e,f\n")),
        data("quotation mark that stays open", 3, "csv_quotes", settings=["data.max_bad_share=0"], prepare=text(lambda d: d + b'\nx,"images/1.png,q,1,2,3,4,a\n')),
        data("undecodable bytes", 3, "encoding: 2", "cp949", prepare=text(lambda d: d.replace(b"Which digit", "어느 숫자".encode("cp949"), 2))),
        data("zero bytes in the text", 3, "encoding: 2", "is a zero", lacks=("cp949",), prepare=text(lambda d: d.replace(b"Which digit", b"Which\0digit", 2))),
        data("question empty", 3, "question_empty: 2", prepare=edit_rows(lambda rows: [r.update(question=" ") for r in rows[:3]])),
        data("choice missing", 3, "choice_missing: 2", prepare=edit_rows(lambda rows: [r.update(b="") for r in rows[:3]])),
        data("no label at all", 3, "no_labels: 24", "add answers", prepare=edit_rows(lambda rows: [r.update(answer="") for r in rows])),
        data("samples longer than the row", 3, "seq_len", settings=["stages.all.seq_len=16"]),
        data("unknown kind of file", 2, "data.sets.train.path", "expected", settings=lambda f: [f"data.sets.train.path={f}/config.yaml"]),
        data("packed file that is none", 3, "train.h5", prepare=lambda f: put_file(f"{f}/data/train.h5", b"\x89HDF\r\n\x1a\n" + b"x" * 3000),
             settings=lambda f: [f"data.sets.train.path={f}/data/train.h5"]),
    ]


def put_file(path, content):
    with open(path, "wb") as file:
        file.write(content)


def picture_cases():
    return [
        bad("pictures missing", "image_missing", os.remove, "no such file"),
        bad("pictures empty", "image_damaged", put(b""), "train.csv"),
        bad("pictures truncated", "image_damaged", cut),
        bad("pictures that are text", "image_damaged", put(b"<html>404</html>")),
        bad("pictures that are bombs", "too_many_pixels", put(png(60000, 60000)), "60000 x 60000", "data.max_image_pixels"),
        bad("pictures that are folders", "image_unreadable", into_folder, "not a file"),
        bad("pictures that are pipes", "image_unreadable", fifo, "not a file"),
        bad("pictures too long for their height", "picture_shape", long_strip, "200"),
        bad("links to themselves", "image_missing", lambda p: (os.remove(p), os.symlink(p, p))),
        *([bad("pictures without the right to read", "image_unreadable", lambda p: os.chmod(p, 0), "Permission denied")] if os.geteuid() else []),
        data("all pictures missing", 3, "got 2 wrong records of 2 (image_missing: 2)", prepare=pictures(24, os.remove)),
        data("one picture missing of 24", 0, "left out 1 of 24 records (image_missing 1)", "bad.jsonl", prepare=pictures(1, os.remove), after=skipped),
        data("path that leaves the folder", 3, "image_missing: 2", prepare=edit_rows(lambda rows: [r.update(path="../../../../nowhere/x.png") for r in rows[:3]])),
        data("path that is endless", 3, "image_missing: 2", "...", prepare=edit_rows(lambda rows: [r.update(path="x" * 9000) for r in rows[:3]])),
        data("device as a picture", 3, "image_unreadable: 2", "not a file", prepare=edit_rows(lambda rows: [r.update(path="/dev/zero") for r in rows[:3]])),
    ]


def chat(name, code, *words, line, good=20, **more):
    """`good` sound lines, and this one three times."""
    sound = {"messages": [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]}

    def prepare(folder):
        wrong = line if isinstance(line, bytes) else json.dumps(line).encode()
        if isinstance(line, dict):
            wrong = wrong.replace(b"REAL", rows_of(folder)[0]["path"].encode())
        with open(f"{folder}/data/chat.jsonl", "wb") as file:
            file.write((json.dumps(sound).encode() + b"\n") * good + (wrong + b"\n") * 3)
    return data(name, code, *words, prepare=prepare, settings=lambda f: [f"data.sets.train.path={f}/data/chat.jsonl"], **more)


def chat_cases():
    def turns(*pairs):
        return {"messages": [{"role": role, "content": content} for role, content in pairs]}
    def beside(text, names):
        return {**turns(("user", text), ("assistant", "a")), "images": names}
    image, real = ({"type": "image", "image": path} for path in ("images/none.png", "REAL"))
    return [
        chat("JSONL line broken", 3, "json_invalid: 2", "line 21", line=b'{"messages": [{"role": "user"'),
        chat("JSONL line no object", 3, "chat_invalid: 2", line=[1, 2]),
        chat("JSONL without messages", 3, "chat_invalid: 2", "messages", line={"text": "x"}),
        chat("JSONL of a wrong role", 3, "chat_invalid: 2", "robot", line=turns(("robot", "x"), ("assistant", "a"))),
        chat("JSONL of a wrong type", 3, "chat_invalid: 2", line=turns(("user", 3), ("assistant", "a"))),
        chat("JSONL of an unknown part", 3, "chat_invalid: 2", line=turns(("user", [{"type": "smell", "smell": "x"}]), ("assistant", "a"))),
        chat("JSONL with a missing picture", 3, "image_missing: 2", line=turns(("user", [image]), ("assistant", "a"))),
        chat("JSONL with a picture in the answer", 3, "chat_invalid: 2", "assistant", line=turns(("user", "x"), ("assistant", [real]))),
        chat("JSONL with a placeholder in its text", (0, 3), line=turns(("user", "<|vision_start|><|image_pad|><|vision_end|>"), ("assistant", "a")), grammar=False),
        chat("JSONL of undecodable bytes", 3, "encoding: 2", line=b'{"messages": "\xff\xfe"}'),
        chat("JSONL with pictures of the record", 0, "23 samples", lacks=("left out",), line=beside("<image>\nwhat?", ["REAL"])),
        chat("JSONL with fewer pictures than placeholders", 3, "image_count: 2", "got 1, expected 2", line=beside("<image><image>", ["REAL"])),
        chat("JSONL of a picture with a zero in its name", 3, "not_a_file: 2", "zero byte", line=beside("<image>", ["a\0b"])),
        chat("JSONL with calls of tools", 3, "unknown_key: 2", "unknown key tool_calls",
             line={"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}]}),
        chat("JSONL with messages twice", 3, "json_invalid: 2", "'messages' twice", line=b'{"messages": [{"role": "user", "content": "x"}], "messages": []}'),
        chat("JSONL of no turns", 3, "chat_invalid: 2", "got an empty list", line={"messages": []}),
        chat("JSONL that ends with a question", 0, "no_labels: 3", "it does not end with an answer", line=turns(("user", "x"), ("assistant", "a"), ("user", "y"))),
        chat("JSONL nested too deep", 3, "json_invalid: 2", line=b'{"messages": ' + b"[" * 100000 + b"]" * 100000 + b"}"),
    ]


def strange_names(folder):
    """A folder with blanks, Korean, a newline and a symbolic link, and the same data."""
    odd = f"{folder}/데이터 \n 'x' $(id)"
    os.rename(f"{folder}/data", odd)
    os.symlink(odd, f"{folder}/data")
    rows = rows_of(folder)
    os.rename(f"{odd}/{rows[0]['path']}", f"{odd}/images/사진 1.png")
    rows[0]["path"] = "images/사진 1.png"
    write_rows(folder, rows)


def place_cases():
    return [
        data("strange names of folders and pictures", 0, "24 samples", prepare=strange_names, lacks=("left out",),
             settings=lambda f: [f"out={f}/run mit 한글/"]),
        data("cache that is a file", 6, "data.cache", prepare=lambda f: put_file(f"{f}/packs", b"")),
        data("cache on a device", 6, "data.cache", "/dev/full", settings=["data.cache=/dev/full"]),
        Case("evaluation set without answers", 2, "eval.metric: got loss", "it has no label", lacks=("all 1/2",), copies=("data",),
             prepare=lambda f: write_rows(f, [{k: v for k, v in r.items() if k != "answer"} for r in rows_of(f, "heldout.csv")], "heldout.csv")),
    ]


if __name__ == "__main__":
    run_all(Base(), csv_cases() + picture_cases() + chat_cases() + place_cases())
