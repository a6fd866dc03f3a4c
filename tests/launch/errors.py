"""Wrong input through the real binary: the exit code, and a message that names what was got and what to do."""
import os
import shutil

from harness import expect, make_case, remove, run


def case(name, code, *words, ranks=1, arguments=(), prepare=None, settings=()):
    folder, config = make_case(**{"stages": [{"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 4, "steps": 2}]})
    if prepare:
        prepare(folder)
    sets = [word for s in settings for word in ("--set", s)]
    done = run(ranks, *arguments, "--config", config, *sets, check=False)
    text = done.stdout + done.stderr
    expect(done.returncode == code, f"{name}: ended with {done.returncode}, expected {code}\n{text[-2500:]}")
    for word in words:
        expect(word in text, f"{name}: the message lacks {word!r}\n{text[-2500:]}")
    print(f"{name}: exit {code}")
    remove(folder)


def replace_in(path, old, new, times=-1):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(old, new, times))


def main():
    case("unknown key", 2, "optimizer.lrr", "did you mean optimizer.lr", settings=["optimizer.lrr=1"])
    case("wrong type", 2, "a number", settings=["optimizer.lr=fast"])
    case("contradictory keys at once", 2, "stages.all.length", "eval.patience",
         settings=["stages.all.tokens=100", "eval.patience=2", "eval.set=''"])
    case("-np against the layout", 2, "-np 2", "tp 3", ranks=2, settings=["parallel.tp=3", "stages.all.seq_len=510"])
    case("heads not divisible", 2, "heads", "parallel.tp", ranks=3, settings=["parallel.tp=3", "stages.all.seq_len=510", "stages.all.rows_per_step=3"])
    case("pipeline not built", 2, "parallel.pp", settings=["parallel.pp=2"], ranks=2)
    case("unknown command", 2, "expected one of", arguments=["trian"])
    case("unknown flag", 2, "--confg", arguments=["--confg=1"])
    case("missing CSV column", 3, "question", prepare=lambda f: replace_in(f"{f}/data/train.csv", "question", "frage", 1))
    case("all pictures missing", 3, prepare=lambda f: shutil.rmtree(f"{f}/data/images"))
    case("missing tokenizer", 3, prepare=lambda f: os.remove(f"{f}/tokenizer/vocab.json"))
    print("errors: every case ended as documented")


if __name__ == "__main__":
    main()
