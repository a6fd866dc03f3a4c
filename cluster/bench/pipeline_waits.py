"""What the ranks of a pipeline wait for, from the diagram of a step (log.profile_step). usage: pipeline_waits.py RUN/pipeline_STAGE_STEP.json ...
work: all passes. Waits: before the first pass, between passes, and from the last one to the end of the step; updates are among them. Then the
medians of the passes of each piece, the gaps between kernels inside of them included."""
import collections
import json
import statistics
import sys


def ranks_of(diagram):
    """rank -> (step, its passes in order), events of Chrome's format."""
    steps, passes = {}, collections.defaultdict(list)
    for event in diagram["traceEvents"]:
        if event["ph"] == "X" and event["name"] == "step":
            steps[event["tid"]] = event
        elif event["ph"] == "X":
            passes[event["tid"]].append(event)
    return {rank: (steps[rank], sorted(passes[rank], key=lambda e: e["ts"])) for rank in sorted(steps)}


def read(path):
    with open(path, encoding="utf-8") as text:
        return ranks_of(json.load(text))


def bubble(ranks):
    """Share of the step in which the rank that works most has no pass to work on; its update counts as well."""
    step = max(step["dur"] for step, _ in ranks.values())
    return 1 - max(sum(e["dur"] for e in passes) for _, passes in ranks.values()) / step


def main():
    for path in sys.argv[1:]:
        ranks = read(path)
        print(f"{path}\n| rank | step ms | work | before | between | longest | to the end |\n|---|---|---|---|---|---|---|")
        for rank, (step, passes) in ranks.items():
            gaps = [b["ts"] - a["ts"] - a["dur"] for a, b in zip(passes, passes[1:])]
            last = passes[-1]["ts"] + passes[-1]["dur"]
            cells = [step["dur"], sum(e["dur"] for e in passes), passes[0]["ts"] - step["ts"], sum(gaps), max(gaps, default=0),
                     step["ts"] + step["dur"] - last]
            print(f"| {rank} | " + " | ".join(f"{cell / 1e3:.1f}" for cell in cells) + " |")
        print(f"bubble {100 * bubble(ranks):.2f} % (of the rank that works most)")
        print("\n| piece | rank | forward ms | input gradients | weight gradients |\n|---|---|---|---|---|")
        seconds = collections.defaultdict(lambda: collections.defaultdict(list))
        for rank, (_, passes) in ranks.items():
            for event in passes:
                seconds[event["args"]["piece"], rank][event["cat"]].append(event["dur"] / 1e3)
        for (piece, rank), kinds in sorted(seconds.items()):
            inputs = kinds.get("input gradients") or kinds.get("backward")  # the latter: both gradients in one
            cells = [statistics.median(times or [0]) for times in (kinds.get("forward"), inputs, kinds.get("weight gradients"))]
            print(f"| {piece} | {rank} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
