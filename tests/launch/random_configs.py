"""One key of a sound config gets a value that nobody thought of: the program must succeed or say what is wrong, with a documented code, in
time, and never with the words of a C++ runtime.   usage: random_configs.py [COUNT [SEED]]"""
import concurrent.futures
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time

from catalogue import FOREIGN, STAGE, Base, message_lines
from harness import ENV, ROOT, expect, ranks_of, remove, tiny_config

CODES = {0, 2, 3, 4, 5, 6, 7, 75, 76}
NUMBERS = ["0", "1", "-1", "2", "3", "5", "7", "13", "64", "100", "1e-30", "-1e-30", "1e30", "1e308", "0.5", "-0.5", "0.999999", "1000000", "2147483647", "2147483648",
           "4294967296", "9007199254740993", "9223372036854775807", "18446744073709551616", "nan", "-.inf", ".inf", "0x10", "1_000", "1,5", "'7'", "+4", "1e3", "007"]
OTHERS = ["''", "null", "~", "true", "no", "[]", "[1, 2]", "[1, [2]]", "{}", "{a: 1}", "{name: x}", "x", "한글", "'a b'", "'\\n'", "\"\\0\"", "'%s%n'", "x" * 5000, "!!binary AAAA",
          "&a [*a]", "---", "- 1", "a: b", "'${HOME}'", "*"]
PATHS = ["/dev/null", "/dev/full", "/proc/x", "a/b/c", "./", "a//b/", "x" * 300, "/dev/stdin", "/etc/passwd", "*", "'a\\tb'", "/nowhere"]
GLOBS = ["['**']", "['']", "['*']", "['decoder.**']", "['**.bias']", "['[']", "['" + "**" * 40 + "x']", "'tower.*.*'"]
PATH_KEYS = re.compile(r"(^name|^out|path|tokenizer|cache|image_root|dump|submission|output)$")


def known_keys():
    """Keys of configs/keys.md with their defaults and rules, of this run."""
    with open(f"{ROOT}/configs/keys.md", encoding="utf-8") as file:
        rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| .* \| (.*?) \|$", file.read(), re.M)
    out = []
    for key, default, rule in rows:
        key = key.replace("sets.NAME", "sets.train").replace("mixture.NAME", "mixture.train").replace("stages.N", "stages.0")
        out.append((key.replace(".N.", ".0."), default.strip("` "), rule))
    return out


def value_for(key, default, rule, rng):
    pools = [NUMBERS, OTHERS, NUMBERS]
    if PATH_KEYS.search(key):
        pools = [PATHS, PATHS, OTHERS]
    if rule.startswith("["):
        pools = [rule.strip("[]").split(", "), OTHERS]
    if default.startswith("["):
        pools += [GLOBS]
    if re.fullmatch(r"\d+", default) and rng.random() < 0.5:
        return str(max(0, int(default) + rng.choice([-2, -1, 1, 2, int(default), 9 * int(default)])))
    value = rng.choice(rng.choice(pools))
    return "x" if PATH_KEYS.search(key) and value in ("''", "null", "~") and key == "out" else value


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))  # what asks for more must be told no, not take the machine down


def attempt(base, number, key, value, command):
    folder = tempfile.mkdtemp(prefix="hanok-random-")
    config = tiny_config(folder, **{**base.paths(), "stages": [dict(STAGE)], "save": {"every": 1, "keep": 2}})
    setting = f"{key}={value}"
    words = ["trainer", *command, "--config", config, "--set", setting]
    where = f"mutation {number}: trainer {' '.join(command)} --set {setting[:200]}"
    with open(f"{folder}/said", "wb") as out:
        process = subprocess.Popen(words, env=ENV, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder, preexec_fn=limits)
        try:
            code = process.wait(20)
        except subprocess.TimeoutExpired:  # a long training is no fault, if it ends when asked to
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                code = "a hang"
    with open(f"{folder}/said", encoding="utf-8", errors="replace") as file:
        text = file.read()
    fault = None
    if code not in CODES:
        fault = f"ended with {code}"
    for word in FOREIGN:
        if word in text:
            fault = f"says {word!r}"
    if code not in (0, None) and fault is None and not any(";" in line for line in message_lines(text)):
        fault = f"ended with {code} and says too little"
    if ranks_of(config):
        fault = "left a rank behind"
    remove(folder)
    return code, f"{where}: {fault}\n{text[-2500:]}" if fault else None, where, text


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"random_configs: {count} mutations, seed {seed}", flush=True)
    rng = random.Random(seed)
    base = Base()
    base.finish_run()
    keys = known_keys()
    commands = [[], [], [], ["plan"], ["evaluate", "--checkpoint", f"{base.folder}/run"], ["pack"], ["doctor"]]
    jobs, faults, codes, began = [], [], {}, time.time()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for number in range(count):
            key, default, rule = rng.choice(keys)
            jobs.append(pool.submit(attempt, base, number, key, value_for(key, default, rule, rng), rng.choice(commands)))
        for job in jobs:
            code, fault, where, text = job.result()
            codes[code] = codes.get(code, 0) + 1
            if fault:
                faults.append(fault)
                print("FAILED:", fault, flush=True)
            elif count > 50:
                print(f"{where}: {code}: {(message_lines(text) or [''])[-1][:160]}", flush=True)
    remove(base.folder)
    print(f"codes {dict(sorted(codes.items(), key=str))} in {time.time() - began:.0f} s")
    expect(not faults, f"{len(faults)} of {count} mutations with seed {seed}")


if __name__ == "__main__":
    main()
