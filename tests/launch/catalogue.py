"""What the scripts of the error catalogue share: a sound run, and cases that each spoil a copy of a part of it.

Every case goes through the real program twice, alone and under mpirun -np 2. It must end in time with the documented code and a
message that holds the given words, says what was expected and what to do, and is said once whatever the number of ranks; nothing
that a C++ runtime or libtorch says on its own may show, and no rank may stay behind.   usage: errors_THEME.py [FILE [WORD]]: messages go to
FILE, only cases whose name holds WORD run"""
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

from harness import ENV, ROOT, expect, make_digits, make_tokenizer, ranks_of, remove, tiny_config

STAGE = {"name": "all", "mixture": {"train": 1}, "seq_len": 512, "rows_per_step": 2, "steps": 2}
FOREIGN = ["unexpected:", "terminate called", "libtorch:", "what():", "Exception raised from", "core dumped", "Segmentation fault",
           "Floating point exception", "basic_string", "std::", "vector::", "[json.exception", "YAML::", "report it", "Failing at address"]
MPIRUN_SAYS = ["Primary job", "a non-zero exit code.", "mpirun detected", "the job to be terminated", "-----", "Process name", "Exit code:",
               "MPI_ABORT was invoked", "with errorcode", "NOTE: invoking", "You may or may not", "exactly when Open MPI"]
TIMEOUT_S = 90


class Base:
    """Tokenizer, data and packs that sound cases share, and on demand a finished run with its checkpoints and model folder."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="hanok-catalogue-")
        make_tokenizer(f"{self.folder}/tokenizer")
        make_digits(f"{self.folder}/data", 24)
        make_digits(f"{self.folder}/data", 8, seed=1, name="heldout.csv")

    def paths(self):
        """Keys of a config that lies elsewhere."""
        b = self.folder
        return {"model.tokenizer": f"{b}/tokenizer", "data.cache": f"{b}/packs",
                "data.sets": {"train": {"path": f"{b}/data/train.csv"}, "heldout": {"path": f"{b}/data/heldout.csv"}}}

    def finish_run(self, **changes):
        """4 steps with a checkpoint after every second one, and the exported folder."""
        config = tiny_config(self.folder, **{"stages": [{**STAGE, "steps": 4}], "save": {"every": 2, "keep": 3}, **changes})
        done = subprocess.run(["trainer", "--config", config], env=ENV, capture_output=True, text=True, cwd=ROOT)
        expect(done.returncode == 0, f"the sound run ended with {done.returncode}\n{done.stderr}")


class Case:
    def __init__(self, name, code, *words, settings=(), arguments=(), copies=(), changes=None, prepare=None, after=None, lacks=(), ranks=(0, 2),
                 grammar=True, shell=None):
        """copies: parts of the base that the case may spoil; prepare(folder) spoils them; shell: wraps the command line; code: or several."""
        self.__dict__.update(name=name, codes=code if isinstance(code, tuple) else (code,), words=words, settings=settings, arguments=arguments,
                             copies=copies, changes=changes or {}, prepare=prepare, after=after, lacks=lacks, ranks=ranks, grammar=grammar, shell=shell)

    def config_of(self, base, folder):
        keys = base.paths()
        for part in self.copies:
            shutil.copytree(f"{base.folder}/{part}", f"{folder}/{part}", symlinks=True)
        if "data" in self.copies:
            keys["data.cache"] = f"{folder}/packs"
            keys["data.sets"] = {s: {"path": f"{folder}/data/{s}.csv"} for s in ("train", "heldout")}
        if "tokenizer" in self.copies:
            keys["model.tokenizer"] = f"{folder}/tokenizer"
        changes = self.changes(folder) if callable(self.changes) else self.changes
        return tiny_config(folder, **{"stages": [dict(STAGE)], **keys, **changes})

    def run(self, base, ranks):
        """-> what was said; raises SystemExit where the case does not hold."""
        where = f"{self.name} ({'alone' if ranks == 0 else f'-np {ranks}'})"
        folder = tempfile.mkdtemp(prefix="hanok-case-")
        try:
            return self.run_in(folder, base, ranks, where)
        finally:
            for root, _, _ in os.walk(folder):
                os.chmod(root, 0o755)
            remove(folder)

    def run_in(self, folder, base, ranks, where):
        config = self.config_of(base, folder)
        if self.prepare:
            self.prepare(folder)
        flags = [] if any(a.startswith("--config") for a in self.arguments) else ["--config", config]
        settings = self.settings(folder) if callable(self.settings) else self.settings
        arguments = [a.replace("FOLDER", folder) for a in self.arguments]
        words = ["trainer", *arguments, *flags, *(w for s in settings for w in ("--set", s))]
        words = (["mpirun", "-np", str(ranks)] if ranks else []) + words
        if self.shell:
            words = self.shell(folder, words)
        began = time.time()
        try:
            done = subprocess.run(words, env=ENV, capture_output=True, timeout=TIMEOUT_S, cwd=ROOT)
        except subprocess.TimeoutExpired as late:
            raise SystemExit(f"FAILED: {where}: still running after {TIMEOUT_S} s\n{(late.stderr or b'').decode(errors='replace')[-3000:]}")
        text = (done.stdout + done.stderr).decode(errors="replace")
        self.judge(where, done.returncode, text, config)
        try:
            if self.after:
                self.after(folder, text)
        except (SystemExit, AssertionError, OSError, IndexError) as fault:
            raise SystemExit(f"FAILED: {where}: {fault}")
        return text, time.time() - began

    def judge(self, where, code, text, config):
        def hold(condition, fault):
            expect(condition, f"{where}: {fault}\n{text[-3000:]}")
        hold(code in self.codes, f"ended with {code}, expected {self.codes}")
        for word in self.words:
            hold(word in text, f"the message lacks {word!r}")
        for word in [*FOREIGN, *self.lacks]:
            hold(word not in text, f"the message says {word!r}")
        lines = message_lines(text)
        twice = sorted({line for line in lines if len(line) > 40 and lines.count(line) > 1})
        hold(not twice, f"said more than once: {twice}")
        if self.grammar and 0 not in self.codes:
            fault = "\n".join(lines)
            hold(("expected" in fault or "unknown" in fault or "not YAML" in fault) and "; " in fault, "not got / expected / where / what to do")
        left = ranks_of(config)
        hold(not left, f"ranks {left} are still running")


def message_lines(text):
    """Lines without time stamps and ranks, and without what mpirun says."""
    out = []
    for line in text.splitlines():
        line = re.sub(r"^[IWE]\d{8} [\d:.]+ +\d+ \S+:\d+\] ", "", line)
        line = re.sub(r"^\[rank \d+\] |rank \d+: ", "", line).strip()
        if line and not any(line.startswith(say) or say in line for say in MPIRUN_SAYS):
            out.append(line)
    return out


def run_all(base, cases, workers=3, check=lambda: None):
    """Cases side by side: most of a start is waiting for mpirun."""
    file = open(sys.argv[1], "a", encoding="utf-8") if len(sys.argv) > 1 else None
    word = sys.argv[2] if len(sys.argv) > 2 else ""
    cases = [c for c in cases if word in c.name]
    began = time.time()
    failures = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = [(c, ranks, pool.submit(c.run, base, ranks)) for c in cases for ranks in c.ranks]
        for c, ranks, job in jobs:
            try:
                text, seconds = job.result()
            except SystemExit as failure:
                failures.append(str(failure))
                print(failure, flush=True)
                continue
            print(f"{c.name} ({ranks or 'alone'}): {c.codes[0]}, {seconds:.1f} s", flush=True)
            if file and ranks == c.ranks[0]:
                file.write(f"## {c.name}: exit {c.codes[0]}\n" + "\n".join(message_lines(text)) + "\n\n")
    check()
    remove(base.folder)
    print(f"{len(jobs)} starts of {len(cases)} cases in {time.time() - began:.0f} s, {len(failures)} failures")
    expect(not failures, f"{len(failures)} starts did not end as documented")
