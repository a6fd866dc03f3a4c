"""Reading of a trace that log.profile_step wrote: which time of a step the GPU spent on what."""
import json


def events_of(trace):
    """Kernels and copies of the GPU; none: it was a CPU's."""
    with open(trace, encoding="utf-8") as text:
        return [e for e in json.load(text)["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


def union(intervals):
    merged = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    return merged


def length(intervals):
    return sum(end - begin for begin, end in intervals)


def times_of(events):
    """Milliseconds: `span` of a step; `nccl`, during which NCCL's kernels ran; `exposed`, during which nothing else did; `idle`, nothing at all.
    None: there are no events."""
    if not events:
        return None
    nccl, other = [], []
    for event in events:
        (nccl if "nccl" in event["name"].lower() else other).append((event["ts"], event["ts"] + event["dur"]))
    everything = union(nccl + other)
    span, busy = everything[-1][1] - everything[0][0], length(everything)
    return {"span_ms": span / 1e3, "nccl_ms": length(union(nccl)) / 1e3, "exposed_ms": (busy - length(union(other))) / 1e3,
            "idle_ms": (span - busy) / 1e3}
