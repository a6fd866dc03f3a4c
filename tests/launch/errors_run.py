"""The run folder, the disk, the ends of pipes, and ranks that die: nothing saved is lost, nobody stays behind."""
import csv
import fcntl
import os
import signal
import stat
import subprocess
import tempfile
import time

from catalogue import STAGE, Base, Case, run_all
from harness import ENV, ROOT, committed, expect, ranks_of, remove, tiny_config

def short(steps, **more):
    return {"stages": [{**STAGE, "steps": steps}], "save": {"every": 2, "keep": 3, **more}}


def limited(file_bytes):
    """The same command where no file may grow beyond this: what a full disk looks like to any user. Open MPI itself needs 4 MiB."""
    def shell(folder, words):
        return ["bash", "-c", f'ulimit -f {file_bytes // 1024}; exec "$@"', "limited", *words]
    return shell


def on_small_disk(kib):
    """FOLDER/small is a disk of this size, whose content is FOLDER/left afterwards; needs the right to mount."""
    def shell(folder, words):
        os.makedirs(f"{folder}/small", exist_ok=True)
        script = f'mount -t tmpfs -o size={kib}k tmpfs {folder}/small; "$@"; code=$?; cp -r {folder}/small {folder}/left; exit $code'
        return ["unshare", "-rm", "bash", "-c", script, "small", *words]
    return shell


def may_mount():
    return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


def kept(*steps):
    def after(folder, said):
        got = [step for _, step in committed(folder)]
        expect(got == list(steps), f"checkpoints {got} instead of {steps}\n{said[-2000:]}")
        left = [d for d in os.listdir(f"{folder}/run/checkpoints/all") if d.endswith(".tmp")]
        expect(not left, f"{left} fills the disk for nothing")
    return after


def disk_cases():
    wide = {"model.decoder.ffn": 4096}
    cases = [
        Case("file limit at save", 6, "checkpoint of step 2 was not saved", "File too large", "training goes on", "checkpoint of step 4 was not saved",
             "expected a saved state at the end", changes={**short(4, export_model=False), **wide}, shell=limited(5000 * 1024), after=kept()),
        Case("run folder below a file", 6, "run folder", "Not a directory", settings=lambda f: [f"out={f}/config.yaml/run"]),
        Case("run folder without a name", 2, "name: got \"\"", settings=["out=''", "name=''"]),
        Case("run folder too long", 6, "run folder", "File name too long", settings=lambda f: [f"out={f}/{'x' * 300}"]),
        Case("run folder on a read-only place", 6, "run folder", "expected a folder that can be written", settings=["out=/proc/run"]),
        Case("checkpoints that are a file", 6, "checkpoint", "expected a saved state at the end", changes=short(2, export_model=False),
             prepare=lambda f: (os.makedirs(f"{f}/run"), open(f"{f}/run/checkpoints", "w").close())),
        Case("export onto a foreign folder", 6, "holds something else", "choose another path", copies=("run",), arguments=["export", "--output", "FOLDER"]),
        *export_cases(),
        Case("export onto a model folder", 0, "is written and compared", copies=("run",), arguments=["export", "--output", "FOLDER/run/model/"], grammar=False),
        Case("export below a file", 6, "config.yaml", copies=("run",), arguments=["export", "--output", "FOLDER/config.yaml/x"]),
        Case("dump that cannot be written", 6, "eval.dump", "nowhere", copies=("run",), arguments=["evaluate"], settings=["eval.dump=/nowhere/x.jsonl"]),
        Case("trailing slashes", 0, "finished", settings=lambda f: [f"out={f}/run//"], after=kept(2), changes=short(2), lacks=("run//",), grammar=False),
        Case("very long paths", 0, "finished", settings=lambda f: [f"out={f}/{'/'.join(['y' * 200] * 12)}"], changes=short(2), grammar=False),
    ]
    if not may_mount():
        print("no right to mount: the cases of a full disk are left out")
        return cases
    return cases + [
        Case("full disk at save", 6, "checkpoint of step 6 was not saved", "No space left", "earlier checkpoints are as they were", changes=short(6, export_model=False),
             settings=lambda f: [f"out={f}/small/run"], shell=on_small_disk(5400), after=left_on_disk(2, 4)),
        Case("full disk at export", 6, "No space left", "model.tmp", changes=short(2), settings=lambda f: [f"out={f}/small/run"], shell=on_small_disk(2700),
             after=left_on_disk(2)),
        Case("full disk while packing", 6, "No space left", "small/packs", copies=("data",), settings=lambda f: [f"data.cache={f}/small/packs"],
             shell=on_small_disk(64)),
        Case("full disk from the start", 6, "No space left", settings=lambda f: [f"out={f}/small/run"], shell=on_small_disk(4)),
    ]


def put(path, text="mine\n"):
    """-> a file at FOLDER/path, and a check that it is still there, and all that lay beside it."""
    def prepare(folder):
        os.makedirs(os.path.dirname(f"{folder}/{path}"), exist_ok=True)
        with open(f"{folder}/{path}", "w", encoding="utf-8") as file:
            file.write(text)
        LISTED[folder] = sorted(os.listdir(os.path.dirname(f"{folder}/{path}")))

    def after(folder, _):
        with open(f"{folder}/{path}", encoding="utf-8") as file:
            expect(file.read() == text, f"{path} was overwritten")
        now = sorted(os.listdir(os.path.dirname(f"{folder}/{path}")))
        expect(now == LISTED[folder], f"{LISTED[folder]} became {now}")
    return {"prepare": prepare, "after": after}


LISTED = {}


def export_cases():
    """What an export may take the place of: a folder with nothing in it but what an export writes, and what a killed one left."""
    onto = {"copies": ("run",), "arguments": ["export", "--output", "FOLDER/run/model"]}
    short_run = {"changes": short(2), "settings": ["save.export_model=true"]}

    def link(folder):
        os.symlink(f"{folder}/run/model", f"{folder}/link")

    def leave_unfinished(folder):
        put("run/model.tmp/model/model.safetensors", "half")["prepare"](folder)
        put("run/model.tmp/.hanok_export")["prepare"](folder)

    def with_note(folder):
        put("run/model/README.md")["prepare"](folder)
        with open(f"{folder}/run/exported", encoding="utf-8") as file:
            _, _, checkpoint = file.read().rpartition("/run/")
        put("run/exported", f"{folder}/run/{checkpoint}")["prepare"](folder)
        LISTED[folder] = sorted(os.listdir(f"{folder}/run/model"))

    def nothing_left(folder, _):
        expect(not os.path.exists(f"{folder}/run/model.tmp") and os.path.isfile(f"{folder}/run/model/model.safetensors"), "model.tmp is left, or model is not there")

    return [
        Case("export onto a project", 6, "holds something else (", "choose another path", **put("mine/config.json", "{}"), arguments=["export", "--output", "FOLDER/mine"],
             copies=("run",)),
        Case("export onto a model folder with a note", 6, "holds something else (README.md)", "choose another path", **put("run/model/README.md"), **onto),
        Case("export beside a foreign folder", 6, "model.tmp", "that no export left", "rename it", **put("run/model.tmp/notes.txt"), **onto),
        Case("export beside a foreign file", 6, "model.tmp", "that no export left", "rename it", **put("run/model.tmp"), **onto),
        Case("export after one that was killed", 0, "is written and compared", prepare=leave_unfinished, after=nothing_left, grammar=False, **onto),
        Case("export onto model.path", 2, "got the folder of model.path as its target", "choose another", copies=("run",), settings=lambda f: [f"model.path={f}/run/model"],
             arguments=["export", "--output", "FOLDER/run/model/"], prepare=put("run/note")["prepare"], after=put("run/note")["after"]),
        Case("export onto a link to model.path", 2, "got the folder of model.path as its target", copies=("run",), settings=lambda f: [f"model.path={f}/run/model"],
             arguments=["export", "--output", "FOLDER/link"], prepare=link),
        Case("training whose export has no place", 6, "holds something else (notes.md)", lacks=("packed in", "stage all ("), **put("run/model/notes.md"), **short_run),
        Case("training whose unfinished export has no place", 6, "that no export left", lacks=("stage all (",), **put("run/model.tmp/notes.md"), **short_run),
        Case("training over model.path", 2, "got the folder of model.path as its target", lacks=("stage all (",), copies=("run",),
             settings=lambda f: [f"model.path={f}/run/model", "save.export_model=true"], arguments=["--resume", "never"]),
        Case("finished training with a note in its model folder", 0, "finished", copies=("run",), changes=short(4), grammar=False,
             prepare=with_note, after=put("run/model/README.md")["after"]),
    ]


def output_cases():
    """Outputs that are inputs, and the answer on a disk that is full."""
    def same(*keys, **more):
        return {"arguments": ["evaluate"], "copies": ("run", "data"), "settings": lambda f: [f"{k.replace('=', f'={f}/')}" for k in keys], **more}

    def all_kept(folder, _):
        for path in ("data/heldout.csv", "data/train.csv", "config.yaml"):
            with open(f"{folder}/{path}", encoding="utf-8") as file:
                expect("Which digit" in file.readline() + file.readline() or path == "config.yaml" and '"stages"' in file.read(), f"{path} was overwritten")

    def link(folder):
        os.symlink(f"{folder}/data/heldout.csv", f"{folder}/link.csv")

    def special(folder):
        os.symlink(f"{folder}/elsewhere.json", f"{folder}/away.json")
        os.mkfifo(f"{folder}/pipe")

    def still_special(folder, _):
        expect(os.path.islink(f"{folder}/away.json") and stat.S_ISFIFO(os.stat(f"{folder}/pipe").st_mode), "the link or the pipe was replaced")

    def rename(folder):
        os.rename(f"{folder}/data/heldout.csv", f"{folder}/data/out.csv.tmp")

    def onto_full(folder, words):
        return ["bash", "-c", '"$@" >/dev/full', "full", *words]

    def limited_output(folder, words):  # at the end of a file that is as long as any may be
        return ["bash", "-c", f'truncate -s 5000K {folder}/out; ulimit -f 5000; exec "$@" >>{folder}/out', "limited", *words]

    def large_picture(folder):
        from PIL import Image
        name = sorted(os.listdir(f"{folder}/data/images"))[0]
        Image.frombytes("RGB", (1600, 1600), os.urandom(3 * 1600 * 1600)).save(f"{folder}/data/images/{name}")

    def is_echo(folder, said):
        expect("goes on from" in said, "the run did not go on")

    cases = [Case(f"{name} on a full disk", 6, "standard output: got", "make room", arguments=words, shell=onto_full, ranks=(0,), copies=("run",))
             for name, words in [("plan", ["plan"]), ("plan in JSON", ["plan", "--json"]), ("doctor", ["doctor"]), ("evaluate", ["evaluate"]), ("help", ["--help"])]]
    return cases + [
        Case("plan into a limited file", 6, "standard output: got", arguments=["plan"], shell=limited_output, ranks=(0,)),
        Case("training with a full log", 0, "finished", shell=onto_full, ranks=(0,), changes=short(2), grammar=False),
        Case("plan whose reader leaves", 0, arguments=["plan"], shell=pipe, lacks=("standard output",), ranks=(0,), grammar=False),
        Case("submission onto its set", 2, "eval.submission: got the file of data.sets.heldout.path", "choose another", **same("eval.submission=data/heldout.csv", after=all_kept)),
        Case("dump onto another set by a link", 2, "eval.dump: got the file of data.sets.heldout.path", **same("eval.dump=link.csv", after=all_kept, prepare=link)),
        Case("output onto the config", 2, "eval.output: got the file of --config", **same("eval.output=config.yaml", after=all_kept)),
        Case("output whose temporary file is a set", 2, "eval.output: got the file of data.sets.heldout.path",
             **{**same("eval.output=data/out.csv", "data.sets.heldout.path=data/out.csv.tmp", prepare=rename)}),
        Case("output that is a link", 6, "eval.output: got", "which is a link", **same("eval.output=away.json", after=still_special, prepare=special)),
        Case("dump into a pipe", 6, "eval.dump: got", "which is a link, a pipe or a device", **same("eval.dump=pipe", after=still_special, prepare=special)),
        Case("two outputs in one file", 2, "eval.output: got the file of eval.dump", **same("eval.dump=new.json", "eval.output=./new.json", after=all_kept)),
        Case("run folder of the config", 2, "out: got the folder of --config", "set another `out`", settings=lambda f: [f"out={f}"], after=not_taken),
        Case("run folder with a config of somebody else", 2, "out: got a folder with a config.yaml that no run wrote", "set another `out`", **put("run/config.yaml")),
        Case("run that is started with its own echo", 0, copies=("run",), arguments=["--config", "FOLDER/run/config.yaml"], settings=lambda f: [f"out={f}/run"],
             after=is_echo, grammar=False),
        Case("file limit while packing", 6, "File too large", arguments=["pack"], copies=("data",), shell=limited(5000 * 1024), prepare=large_picture),
    ]


def not_taken(folder, _):
    with open(f"{folder}/config.yaml", encoding="utf-8") as file:
        expect(file.read(1) == "{", "the config was overwritten")
    expect(os.listdir(folder) == ["config.yaml"], f"{os.listdir(folder)}: something was written")


def pipe(folder, words):  # head ends after one line; the program must not die of it
    quoted = " ".join(f"'{w}'" for w in words)
    return ["bash", "-c", f"set -o pipefail; {quoted} | head -1; exit ${{PIPESTATUS[0]}}"]


def left_on_disk(*steps):
    def after(folder, said):
        os.rename(f"{folder}/left/run", f"{folder}/run")
        kept(*steps)(folder, said)
    return after


def locked_run(folder):
    """A run that somebody else holds."""
    os.makedirs(f"{folder}/run")
    file = open(f"{folder}/run/LOCK", "w", encoding="utf-8")
    file.write("pid 4711 on elsewhere, since 2026-01-01T00:00:00Z\n")
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    HELD.append(file)


HELD = []


def without_answers(folder):
    with open(f"{folder}/data/heldout.csv", encoding="utf-8", newline="") as file:
        rows = [row[:-1] for row in csv.reader(file)]
    with open(f"{folder}/data/heldout.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def submission_has_8(folder, said):
    with open(f"{folder}/s.csv", encoding="utf-8") as file:
        expect(len(file.readlines()) == 9, "the submission has not a header and 8 rows")


def folder_cases():
    def stale(folder):
        with open(f"{folder}/run/LOCK", "w", encoding="utf-8") as file:
            file.write("pid 1 on elsewhere, since 2026-01-01T00:00:00Z\n")

    def manifest_pipe(folder):
        os.remove(f"{folder}/run/checkpoints/all/step_00000004/manifest.json")
        os.mkfifo(f"{folder}/run/checkpoints/all/step_00000004/manifest.json")

    def closed(folder, words):
        quoted = " ".join(f"'{w}'" for w in words)
        return ["bash", "-c", f"{quoted} <&- >&- 2>&-"]

    return [
        Case("two jobs on one folder", 6, "another process writes (pid 4711 on elsewhere, since 2026-01-01", "another `out`", prepare=locked_run),
        Case("lock of a dead process", 0, "goes on from", copies=("run",), prepare=stale, changes=short(6, export_model=False), after=kept(2, 4, 6), grammar=False),
        Case("pipe for a manifest", 0, "something that is not a file", "goes on from", "step_00000002", copies=("run",), prepare=manifest_pipe, changes=short(4), grammar=False),
        Case("finished run that is shorter now", 0, "0 of 3 steps to go", "finished at step 4 (it is 3 steps long now)", copies=("run",), changes=short(3), grammar=False),
        Case("profile of a step that no stage has", 0, "log.profile_step: got 9, expected one of the 2 steps of stage all", settings=["log.profile_step=9"],
             changes=short(2), grammar=False),
        Case("training on what is held out", 0, "stage all: got the samples of eval.set = heldout in its mixture (again), expected others",
             copies=("data",), settings=lambda f: [f"data.sets.again.path={f}/data/heldout.csv", "stages.0.mixture.again=1"], changes=short(2), grammar=False),
        Case("reader that leaves", 0, shell=pipe, after=kept(2), changes=short(2), grammar=False),
        Case("no standard input or output", 0, shell=closed, after=kept(2), changes=short(2), grammar=False),
        Case("training that diverges", 7, "expected finite values", "steps in a row were skipped", "lower optimizer.lr", "step_00000002 is complete", after=kept(2),
             changes={**short(40), "optimizer": {"lr": 1e30, "clip_norm": 0, "schedule": "constant", "max_bad_steps": 2}}),
        Case("GPU that is not there", 76, "device", "expected", settings=["device=cuda"], shell=lambda f, w: ["env", "CUDA_VISIBLE_DEVICES=", *w]),
        Case("evaluation of a set without answers", 0, "8 samples", copies=("run", "data"), arguments=["evaluate"], settings=lambda f: [f"eval.submission={f}/s.csv"],
             prepare=without_answers, after=submission_has_8, grammar=False),
        # Alone: mpirun itself dies of the closed pipe now and then, when much comes at once.
        Case("help into a closed pipe", 0, "trainer trains", arguments=["--help"], shell=pipe, ranks=(0,), grammar=False),
    ]


def start_long(folder, ranks, config):
    words = (["mpirun", "-np", str(ranks)] if ranks else []) + ["trainer", "--config", config]
    return subprocess.Popen(words, env=ENV, stdout=open(f"{folder}/log", "wb"), stderr=subprocess.STDOUT, cwd=ROOT)


def said(folder):
    with open(f"{folder}/log", encoding="utf-8", errors="replace") as file:
        return file.read()


def wait_for(condition, what, seconds=60):
    end = time.time() + seconds
    while not condition():
        expect(time.time() < end, f"no {what} within {seconds} s")
        time.sleep(0.02)


def killed_ranks(base):
    """A rank killed in its start-up and in the midst of training: the others end, the saved steps stay, and the lock is free again."""
    for moment, condition in [("start-up", lambda f, c: len(ranks_of(c)) == 2), ("training", lambda f, c: len(committed(f)) >= 2)]:
        folder = tempfile.mkdtemp(prefix="hanok-case-")
        config = tiny_config(folder, **{**base.paths(), "stages": [{**STAGE, "steps": 4000}], "save": {"every": 2, "keep": 3}})
        process = start_long(folder, 2, config)
        wait_for(lambda: condition(folder, config), f"rank in {moment}")
        victim = max(ranks_of(config))
        os.kill(victim, signal.SIGKILL)
        began = time.time()
        code = process.wait(60)
        expect(code not in (0, 1), f"killed in {moment}: ended with {code}\n{said(folder)[-2000:]}")
        wait_for(lambda: not ranks_of(config), "end of all ranks", 20)
        done = subprocess.run(["trainer", "--config", config, "--set", "stages.all.steps=2"] if moment == "start-up" else
                              ["trainer", "--config", config, "--set", f"stages.all.steps={committed(folder)[-1][1] + 1}"], env=ENV, capture_output=True, text=True, cwd=ROOT)
        expect(done.returncode == 0, f"the next start after a kill in {moment} ended with {done.returncode}\n{done.stderr[-2000:]}")
        expect(moment == "start-up" or "goes on from" in done.stderr, "the next start did not go on")
        print(f"rank killed in {moment}: {code} after {time.time() - began:.1f} s; the next start went on")
        remove(folder)


def two_jobs(base):
    """A second start while a real one runs names its process; the first one goes on undisturbed."""
    folder = tempfile.mkdtemp(prefix="hanok-case-")
    config = tiny_config(folder, **{**base.paths(), "stages": [{**STAGE, "steps": 4000}], "save": {"every": 2, "keep": 3}})
    process = start_long(folder, 0, config)
    wait_for(lambda: len(committed(folder)) >= 1, "first checkpoint")
    done = subprocess.run(["trainer", "--config", config], env=ENV, capture_output=True, text=True, cwd=ROOT)
    expect(done.returncode == 6 and f"pid {process.pid} on " in done.stderr and ", since 20" in done.stderr, f"second job: {done.returncode}\n{done.stderr}")
    process.send_signal(signal.SIGTERM)
    expect(process.wait(60) == 0, f"the first job was disturbed\n{said(folder)[-2000:]}")
    print("two real jobs: the second one named the first")
    remove(folder)


if __name__ == "__main__":
    base = Base()
    base.finish_run()
    killed_ranks(base)
    two_jobs(base)
    run_all(base, disk_cases() + output_cases() + folder_cases())
