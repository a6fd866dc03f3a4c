"""A real run that is disturbed: digits, Korean and English pages and photographs in two stages; a rank is killed (kill -9) in the middle, the
run goes on under another layout, is stopped by SIGTERM, and ends under a third one. Its loss curve is held to that of undisturbed runs.
usage: real_run.py [--gpus 4|8] [--device cpu] [--steps N] [--work runs/real_run] [--data .cache/real] [--plant seed|weight] [--reuse] [--set KEY=VALUE]
Ends with 0 if all of this holds, and prints a summary; WORK/real_run.md and real_run.svg hold it and the plot.
  data      tokens, labels, fill and rate of every step are the same in all runs, the steps done twice included: exactly
  bits      until the kill, loss and norm are the bits of the undisturbed run on the same layout (`deterministic`)
  restart   weights are bit-identical after resharding, so the first step under another layout may differ by the rounding of one forward:
            3 x 0.4 u |ln(vocabulary) - loss| sqrt(n / labels) + 4 x 2^-24 loss. 0.4 u: rms of a rounding, u the width's unit roundoff; n: roundings
            that a token meets one after another, of random sign; |ln(vocabulary) - loss|: scale of what the logits say, which they are relative
            to; the loss is a mean over labels, independent of each other, and is itself summed in float32; three deviations
  curve     later differences are that rounding, grown by training. How much it grows is measured: two undisturbed runs on different layouts,
            in the same call, differ by rounding alone and from the first step on. The disturbed run, which left later, may be at most 4 times
            as far from the first as the second ever was until that step, or until the twelfth (one of 300 normal deviates is beyond 4 times
            the largest of a dozen with a probability below 1e-3); the same for the mean over all steps
  accuracy  answers to the held-out questions that only one of the two runs has right: b and c of them, |b - c| <= 3 sqrt(b + c) (McNemar)
--plant: makes the disturbed run a wrong one (another seed; or from the restart on another weight of label tokens): this must be noticed.
With --device cpu, --gpus is the number of ranks, and model and stages are small. Data: real_data.py, anywhere; WORK holds logs and runs."""
import argparse
import collections
import datetime
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import real_plot
from measured_run import cause_in, command_of, descendants, kill_all, lines_of, prepare, start

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
CONFIG = "cluster/bench/real_run.yaml"
# Layouts of the disturbed run; the undisturbed ones run on the first and on the second.
LAYOUTS = {2: ["tp2", "pp2", "cp2"], 4: ["tp2 pp2", "tp4", "cp2 pp2"], 8: ["tp2 pp2 dp2", "tp4 dp2", "cp2 pp2 dp2"]}
SMALL = {"model.tower.depth": 2, "model.tower.hidden": 64, "model.tower.ffn": 128, "model.decoder.layers": 4, "model.decoder.hidden": 64,
         "model.decoder.ffn": 192, "model.decoder.heads": 4, "optimizer.lr": 2e-3, "stages.0.steps": 4, "stages.0.seq_len": 512,
         "stages.1.seq_len": 512, "data.reader_threads": 1, "threads": 1}
PLANTS = {"seed": {"seed": 6}, "weight": {"stages.1.weight": "token"}}
EXACT = ["tokens", "label_tokens", "fill", "lr", "applied"]
KILLED = 128 + signal.SIGKILL  # what mpirun returns for a rank that a signal ended (launch/README.md)
DTYPES = {"float32": 2.0 ** -24, "bfloat16": 2.0 ** -8}
FACTOR = 4

Point = collections.namedtuple("Point", "stage step")


class Failed(Exception):
    pass


def steps_of(lines):
    return {Point(line["stage"], line["step"]): line for line in lines if line["kind"] == "step"}


class Job:
    """One mpirun of the trainer. It always ends: whoever waits too long kills what is left of it."""
    started = []

    def __init__(self, name, ranks, settings, options, command=()):
        self.out = settings["out"]
        self.log = os.path.join(options.work, f"{name}.log")
        self.command = command_of(CONFIG, ranks, [f"{key}={value}" for key, value in settings.items()])
        self.command[4:4] = command
        self.limit = options.limit
        self.began = time.time()
        self.process = start(self.command, self.log)
        Job.started.append(self)

    def ranks(self):
        """Process ids of the ranks."""
        return [pid for pid in descendants(self.process.pid) if self.is_rank(pid)]

    def is_rank(self, pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().decode(errors="replace").split("\0")
        except OSError:
            return False
        return os.path.basename(words[0]) == "trainer" and f"out={self.out}" in words

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def fail(self, message):
        self.end()
        raise Failed(f"{message}\n  {' '.join(self.command)}\n  {cause_in(self.log)}")

    def end(self):
        if self.process.poll() is None:
            kill_all(self.process)

    def wait(self, seconds=None):
        try:
            return self.process.wait(seconds or max(1, self.limit - (time.time() - self.began)))
        except subprocess.TimeoutExpired:
            self.fail(f"{self.log}: got no end within {seconds or self.limit:.0f} s")

    def wait_for(self, point):
        """Until the metrics hold the step; returns the last step that they hold."""
        while time.time() - self.began < self.limit:
            now = list(steps_of(lines_of(self.out)))
            if now and now[-1].stage == point.stage and now[-1].step >= point.step:
                return now[-1]
            if self.process.poll() is not None:
                self.fail(f"{self.log}: ended with {self.process.returncode} before {point.stage} {point.step}")
            time.sleep(0.01)
        self.fail(f"{self.log}: got no {point.stage} {point.step} within {self.limit:.0f} s")

    def finish(self):
        code = self.wait()
        if code:
            self.fail(f"{self.log}: got exit code {code}; expected 0")
        return time.time() - self.began


def layout_settings(layout):
    """"tp2 dp2" -> settings; what is left out is 1."""
    given = {word[:2]: int(word[2:]) for word in layout.split()}
    return {f"parallel.{axis}": given.get(axis, 1) for axis in ("tp", "pp", "cp", "dp")}


def newest_checkpoint(out):
    folder = f"{out}/checkpoints/all"
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return max([int(n[5:]) for n in names if n.startswith("step_") and n[5:].isdigit() and os.path.exists(f"{folder}/{n}/manifest.json")], default=0)


def undisturbed(name, layout, settings, options):
    """Runs to the end, or takes what an earlier call with the same settings left."""
    settings = settings | layout_settings(layout) | {"out": f"{options.work}/{name}"}
    marker = f"{options.work}/{name}.json"
    if options.reuse and os.path.exists(marker):
        with open(marker, encoding="utf-8") as file:
            if json.load(file)["settings"] == json.loads(json.dumps(settings)):
                return settings
    shutil.rmtree(settings["out"], ignore_errors=True)
    if os.path.exists(marker):
        os.unlink(marker)
    seconds = Job(name, options.gpus, settings, options).finish()
    with open(marker, "w", encoding="utf-8") as file:
        json.dump({"settings": settings}, file)
    print(f"undisturbed on {layout}: {seconds:.0f} s", flush=True)
    return settings


def disturbed(layouts, settings, options, rng):
    """The run with its two ends in the middle. Returns what happened and the metrics of each process, lines that resuming cut included."""
    out = f"{options.work}/disturbed"
    shutil.rmtree(out, ignore_errors=True)
    settings = settings | {"out": out}
    if options.plant == "seed":
        settings = settings | PLANTS["seed"]
    every = settings["save.every"]
    story = {"parts": [], "wrong": []}

    first = Job("disturbed_1", options.gpus, settings | layout_settings(layouts[0]), options)
    first.wait_for(Point("all", 2 * every + max(2, every // 2)))
    while newest_checkpoint(out) < 2 * every and first.process.poll() is None:
        time.sleep(0.01)
    victims = first.ranks()
    victim = rng.choice(victims)
    os.kill(victim, signal.SIGKILL)
    killed = time.time()
    code = first.wait(60)
    story |= {"code": code, "end_s": time.time() - killed, "ranks": len(victims)}
    time.sleep(0.2)
    left = [pid for pid in victims if first.is_rank(pid)]
    if code != KILLED or left:
        story["wrong"].append(f"kill: got exit code {code} and {len(left)} ranks left running; expected {KILLED} and none")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    story["parts"].append((layouts[0], 0, lines_of(out)))
    story["killed"] = list(steps_of(story["parts"][0][2]))[-1].step
    story["resumed"] = newest_checkpoint(out)
    print(f"killed one of {len(victims)} ranks ({layouts[0]}) after step {story['killed']}: exit code {code} after {story['end_s']:.1f} s; "
          f"newest checkpoint: step {story['resumed']}", flush=True)

    if options.plant == "weight":
        settings = settings | PLANTS["weight"]
    restart = time.time()
    second = Job("disturbed_2", options.gpus, settings | layout_settings(layouts[1]), options)
    second.wait_for(Point("all", max(4 * every + every // 3, story["killed"] + 2)))
    second.process.send_signal(signal.SIGTERM)
    code = second.wait(60)
    if code or "stopped" not in second.text():
        story["wrong"].append(f"SIGTERM: got exit code {code}; expected 0, and a line that says that it stopped")
    story["parts"].append((layouts[1], story["resumed"], lines_of(out)))
    story["stopped"] = list(steps_of(story["parts"][1][2]))[-1].step
    if newest_checkpoint(out) != story["stopped"]:
        story["wrong"].append(f"SIGTERM: the last step was {story['stopped']}, the newest checkpoint is of step {newest_checkpoint(out)}")
    print(f"stopped by SIGTERM ({layouts[1]}) after step {story['stopped']}: exit code {code}, {time.time() - restart:.0f} s", flush=True)

    newest = newest_checkpoint(out)
    seconds = Job("disturbed_3", options.gpus, settings | layout_settings(layouts[2]), options).finish()
    story["parts"].append((layouts[2], newest, lines_of(out)))
    print(f"ended on {layouts[2]}: {seconds:.0f} s", flush=True)
    return settings | layout_settings(layouts[2]), story


def own_steps(part, number):
    """The steps that this process did: all of them, or those beyond its checkpoint in the second stage."""
    _, begin, lines = part
    return {p: s for p, s in steps_of(lines).items() if number == 0 or (p.stage == "all" and p.step > begin)}


def compare(calm, other, story, depth):
    """What is wrong with the disturbed run, one line each; and figures."""
    wrong, figures = [], {}
    parts = [own_steps(part, i) for i, part in enumerate(story["parts"])]
    last = {}
    for part in parts:
        last |= part
    if not set(calm) == set(other) == set(last):
        return ["data: the runs do not have the same steps"], figures, {}
    pairs = [(p, calm[p], s) for source in (other, *parts) for p, s in source.items()]
    unlike = [(p, key) for p, a, b in pairs for key in EXACT if a.get(key) != b.get(key)]
    figures["compared"] = len(pairs)
    if unlike:
        point, key = unlike[0]
        wrong.append(f"data: {len({p for p, _ in unlike})} steps differ in {sorted({k for _, k in unlike})}, the first {point.stage} {point.step}: {key}")
    bits = [p for p, s in parts[0].items() if s["loss"] != calm[p]["loss"] or s["grad_norm"] != calm[p]["grad_norm"]]
    figures["same_bits"] = len(parts[0]) - len(bits)
    if bits:
        wrong.append(f"bits: {len(bits)} of {len(parts[0])} steps before the kill differ from the undisturbed run, the first {bits[0].stage} {bits[0].step}")

    restart = Point("all", story["resumed"] + 1)
    of_sum = lambda p: 4 * 2.0 ** -24 * calm[p]["loss"]  # noqa: E731
    said = abs(math.log(depth["vocab"]) - calm[restart]["loss"])
    rounding = 3 * 0.4 * depth["u"] * said * math.sqrt(depth["n"] / calm[restart]["label_tokens"]) + of_sum(restart)
    distance = abs(last[restart]["loss"] - calm[restart]["loss"])
    figures |= {"restart": distance, "restart_tolerance": rounding}
    if distance > rounding:
        wrong.append(f"restart: step {restart.step} differs by {distance:.2e}, more than rounding explains ({rounding:.2e})")

    order = sorted(calm, key=lambda p: (p.stage != "align", p.step))
    spread = [abs(other[p]["loss"] - calm[p]["loss"]) for p in order]
    widest, curve = max(spread[:12]), {"order": order, "distance": [], "spread": spread, "tolerance": []}
    for p, apart in zip(order, spread):
        widest = max(widest, apart)
        curve["distance"].append(max(abs(source[p]["loss"] - calm[p]["loss"]) for source in parts if p in source))
        curve["tolerance"].append(FACTOR * widest + of_sum(p))
    beyond = [i for i, d in enumerate(curve["distance"]) if d > curve["tolerance"][i]]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    figures |= {"distance": max(curve["distance"]), "spread": widest, "mean_distance": mean(curve["distance"]), "mean_spread": mean(curve["spread"]),
                "share": max(d / t for d, t in zip(curve["distance"], curve["tolerance"])), "beyond": len(beyond)}
    if beyond:
        i = beyond[0]
        wrong.append(f"curve: {len(beyond)} steps are beyond the tolerance, the first {order[i].stage} {order[i].step}: "
                     f"{curve['distance'][i]:.2e} of {curve['tolerance'][i]:.2e}")
    mean_tolerance = FACTOR * figures["mean_spread"] + mean([of_sum(p) for p in order])
    if figures["mean_distance"] > mean_tolerance:
        wrong.append(f"curve: mean difference {figures['mean_distance']:.2e}; expected at most {mean_tolerance:.2e}")
    curve |= {"calm": [calm[p]["loss"] for p in order], "final": [last[p]["loss"] for p in order], "parts": [(part[0], {p: s["loss"] for p, s in steps.items()})
                                                                   for part, steps in zip(story["parts"], parts)]}
    return wrong, figures, curve


def judge(runs, options):
    """Evaluates the ends of the runs beside each other on one rank each: kind -> {run: (right, all)}, and the answers."""
    jobs = {}
    for name, settings in runs.items():
        one = settings | layout_settings("dp1") | {"eval.dump": f"{options.work}/{name}_samples.jsonl", "eval.output": f"{options.work}/{name}_accuracy.json"}
        jobs[name] = Job(f"{name}_evaluate", 1, one, options, command=["evaluate"])
    kinds, right, summary = collections.defaultdict(dict), {}, {}
    for name, job in jobs.items():
        job.finish()
        with open(f"{options.work}/{name}_samples.jsonl", encoding="utf-8") as file:
            samples = [json.loads(line) for line in file]
        right[name] = {s["id"]: s["choice"] == s["answer"] for s in samples}
        for kind in ("digit", "page", "photograph"):
            answers = [value for key, value in right[name].items() if key.startswith(kind)]
            if answers:
                kinds[kind][name] = (sum(answers), len(answers))
        with open(f"{options.work}/{name}_accuracy.json", encoding="utf-8") as file:
            summary[name] = json.load(file)
    return kinds, right, summary


def hardware(options):
    if options.device != "cpu":
        done = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        return f"{options.gpus} x {done.stdout.splitlines()[0].strip()}" if done.stdout else f"{options.gpus} GPUs"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "CPU")
    return f"{options.gpus} ranks on {os.cpu_count()} cores, {name}"


def in_words(accuracy):
    return f"{100 * accuracy['accuracy']:.1f} % ({100 * accuracy['accuracy_low']:.1f} to {100 * accuracy['accuracy_high']:.1f})"


def settings_of(options):
    on_cpu = options.device == "cpu"
    steps = options.steps or (48 if on_cpu else 300)
    settings = {f"data.sets.{name}.path": os.path.abspath(f"{options.data}/{name}.{'jsonl' if name == 'headings' else 'csv'}")
                for name in ("digits", "pages", "photographs", "headings", "heldout")}
    settings |= {"device": options.device, "model.dtype": options.dtype, "data.cache": f"{options.work}/packs"}
    settings |= {"stages.1.steps": steps, "save.every": steps // 6} | (SMALL if on_cpu else {})
    return settings | dict(item.split("=", 1) for item in options.set)


def depth_of(settings):
    """What `compare` derives the rounding of one forward from."""
    layers = int(settings.get("model.decoder.layers", 8)) + int(settings.get("model.tower.depth", 4))
    vocab = int(settings.get("model.decoder.vocab", 151936))
    return {"vocab": vocab, "u": DTYPES[settings["model.dtype"]], "n": 12 * layers}  # about a dozen roundings in a row in a layer


def summary(options, settings, story, wrong, figures, curve, judged, seconds):
    kinds, only, accuracy, num_samples = judged
    layouts = LAYOUTS[options.gpus]
    lines = [f"* {datetime.date.today()}; {hardware(options)}; {settings['model.dtype']}; {seconds:.0f} s in all",
             f"* `python3 cluster/bench/real_run.py {' '.join(sys.argv[1:])}`",
             f"* undisturbed: {layouts[0]}, and {layouts[1]}; disturbed: {layouts[0]}, kill -9 of one of {story['ranks']} ranks after step "
             f"{story['killed']} of {settings['stages.1.steps']} (exit code {story['code']} after {story['end_s']:.1f} s), from step {story['resumed']} "
             f"on {layouts[1]}, SIGTERM after step {story['stopped']}, the rest on {layouts[2]}"]
    if curve:
        ends = [sum(curve[name][-20:]) / 20 for name in ("calm", "final")]
        exact = (f"same tokens, labels and rates in {figures['compared']} pairs of steps; {figures['same_bits']} steps before the kill have the bits "
                 "of the undisturbed run")
        lines += ["* " + ("data or bits differ, see below" if any(w.startswith(("data", "bits")) for w in wrong) else exact),
                  f"* first step after the restart: {figures['restart']:.1e} from the undisturbed loss (rounding explains {figures['restart_tolerance']:.1e})",
                  f"* largest difference of a loss: disturbed {figures['distance']:.2e}, the two undisturbed runs {figures['spread']:.2e}; mean "
                  f"{figures['mean_distance']:.2e} and {figures['mean_spread']:.2e}; at most {100 * figures['share']:.0f} % of the tolerance",
                  f"* loss: {curve['calm'][0]:.2f} at first; mean of the last 20 steps {ends[0]:.4f} undisturbed, {ends[1]:.4f} disturbed"]
    lines += ["", "| held out | undisturbed | disturbed |", "|---|---|---|"]
    lines += [f"| {kind}s | " + " | ".join(f"{100 * right / n:.1f} % of {n}" for right, n in by_run.values()) + " |" for kind, by_run in kinds.items()]
    lines += [f"| all, 95 % interval | {in_words(accuracy['calm'])} | {in_words(accuracy['disturbed'])} |", "",
              f"Right in one run only: {only[0]} and {only[1]} of {num_samples}."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=4, choices=LAYOUTS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on GPUs, float32 on CPUs")
    parser.add_argument("--steps", type=int, help="of the second stage (default: 300, on CPUs 48)")
    parser.add_argument("--work", default="runs/real_run")
    parser.add_argument("--data", default=".cache/real", help="folder of real_data.py")
    parser.add_argument("--limit", type=float, help="seconds of one process (default 90, on CPUs 1800)")
    parser.add_argument("--seed", type=int, default=1, help="chooses the rank that is killed")
    parser.add_argument("--plant", choices=PLANTS)
    parser.add_argument("--reuse", action="store_true", help="undisturbed runs of an earlier call with the same settings are taken")
    parser.add_argument("--set", action="append", default=[], help="a further setting of every run")
    options = parser.parse_args()
    if not os.path.exists(os.path.join(options.data, "heldout.csv")):
        parser.error(f"--data: got {options.data}, expected a folder with heldout.csv and the other sets; make it with cluster/bench/real_data.py")
    options.dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    options.limit = options.limit or (1800 if options.device == "cpu" else 90)
    prepare(options)
    settings, layouts, began = settings_of(options), LAYOUTS[options.gpus], time.time()
    try:
        runs = {"calm": undisturbed("calm", layouts[0], settings, options), "other": undisturbed("other", layouts[1], settings, options)}
        runs["disturbed"], story = disturbed(layouts, settings, options, random.Random(options.seed))
        kinds, right, accuracy = judge({"calm": runs["calm"], "disturbed": runs["disturbed"]}, options)
    except Failed as failure:
        sys.exit(f"FAILED: {failure}")
    finally:
        for job in Job.started:
            job.end()
    calm, other = (steps_of(lines_of(f"{options.work}/{name}")) for name in ("calm", "other"))
    wrong, figures, curve = compare(calm, other, story, depth_of(settings))
    wrong = story["wrong"] + wrong
    only = [sum(value and not right[b][key] for key, value in right[a].items()) for a, b in (("calm", "disturbed"), ("disturbed", "calm"))]
    if abs(only[0] - only[1]) > 3 * math.sqrt(sum(only)):
        wrong.append(f"accuracy: {only[0]} answers are right only in the undisturbed run, {only[1]} only in the disturbed one")

    report = summary(options, settings, story, wrong, figures, curve, (kinds, only, accuracy, len(right["calm"])), time.time() - began)
    with open(f"{options.work}/real_run.md", "w", encoding="utf-8") as out:
        out.write(report + "\n")
    print("\n" + report + "\n")
    if curve:
        real_plot.write(f"{options.work}/real_run.svg", curve, story, f"undisturbed {in_words(accuracy['calm'])}, disturbed {in_words(accuracy['disturbed'])}")
    for line in wrong:
        print(f"WRONG {line}")
    if options.plant:
        print(f"planted {options.plant}: {'noticed' if wrong else 'NOT NOTICED'}")
        return 0 if wrong else 1
    print("FAILED" if wrong else f"one loss curve: all checks hold; {options.work}/real_run.md, real_run.svg")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
