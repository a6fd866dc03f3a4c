"""What the ranks of a pipeline wait for, from the diagram of a step (log.profile_step). usage: pipeline_waits.py RUN/pipeline_STAGE_STEP.json ...
work: all passes, the first one of a piece as long as their median: it waits for updated weights ("late"). Waits: before the first pass, between
passes, and from the last one to the end of the step. Then the medians of the passes of each piece, the gaps between kernels inside of them included."""
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


def seconds_of(passes):
    """(piece, kind) -> microseconds of each, in order."""
    out = collections.defaultdict(list)
    for event in passes:
        out[event["args"]["piece"], event["cat"]].append(event["dur"])
    return out


def late(passes):
    """How much longer first forwards took than others of their pieces: they wait for weights, and updates run beside them."""
    return sum(late_by_piece(passes).values())


def late_by_piece(passes):
    return {piece: max(0, times[0] - statistics.median(times)) for (piece, kind), times in seconds_of(passes).items() if kind == "forward"}


def work(passes):
    return sum(e["dur"] for e in passes) - late(passes)


def update(ranks):
    """Share of the step in which no pass runs anywhere, and in which the first forward of all is late: norm and update of the weights, which every
    layout has and formulas of pipelines do not count."""
    step = max(step["dur"] for step, _ in ranks.values())
    begin = min(passes[0]["ts"] for _, passes in ranks.values())
    end = max(passes[-1]["ts"] + passes[-1]["dur"] for _, passes in ranks.values())
    first = max(late_by_piece(passes).get(0, 0) for _, passes in ranks.values())
    return 1 - (end - begin - first) / step


def bubble(ranks):
    """Share of the rest of it in which the rank that works most has no pass to work on."""
    step = max(step["dur"] for step, _ in ranks.values()) * (1 - update(ranks))
    return 1 - max(work(passes) for _, passes in ranks.values()) / step


def main():
    for path in sys.argv[1:]:
        ranks = read(path)
        print(f"{path}\n| rank | step ms | work | late | before | between | longest | to the end |\n|---|---|---|---|---|---|---|---|")
        for rank, (step, passes) in ranks.items():
            gaps = [b["ts"] - a["ts"] - a["dur"] for a, b in zip(passes, passes[1:])]
            last = passes[-1]["ts"] + passes[-1]["dur"]
            cells = [step["dur"], work(passes), late(passes), passes[0]["ts"] - step["ts"], sum(gaps), max(gaps, default=0),
                     step["ts"] + step["dur"] - last]
            print(f"| {rank} | " + " | ".join(f"{cell / 1e3:.1f}" for cell in cells) + " |")
        print(f"update {100 * update(ranks):.2f} %, bubble {100 * bubble(ranks):.2f} % (of the rank that works most)")
        print("\n| piece | rank | forward ms | input gradients | weight gradients |\n|---|---|---|---|---|")
        seconds = {(piece, rank, kind): times for rank, (_, passes) in ranks.items() for (piece, kind), times in seconds_of(passes).items()}
        for piece, rank in sorted({(piece, rank) for piece, rank, _ in seconds}):
            median = lambda kind: statistics.median(seconds.get((piece, rank, kind), [0])) / 1e3  # noqa: E731, B023
            inputs = median("input gradients") or median("backward")  # the latter: both gradients in one
            print(f"| {piece} | {rank} | {median('forward'):.2f} | {inputs:.2f} | {median('weight gradients'):.2f} |")


if __name__ == "__main__":
    main()
