"""GPU time of a trace (log.profile_step) by class of kernel. usage: kernel_table.py TRACE.json [NAMES]  (NAMES: kernels listed singly)"""
import collections
import json
import sys

CLASSES = [  # first match wins
    ("attention", ("sdpa", "flash", "fmha", "cudnn_generated")),
    ("nccl", ("nccl",)),
    ("grouped gemm", ("groupproblemshape", "grouped")),
    ("rows of experts", ("::spread<", "::collect<", "::products<", "::choose", "order_slots", "sum_counts", "order_runs")),
    ("gemm", ("gemm", "nvjet", "cutlass", "xmma", "cublas")),
    ("adamw", ("adamw",)),
    ("copy", ("memcpy", "memset", "copy_")),
    ("ours", ("hanok", "rms_norm", "swiglu", "qk_rope", "layer_norm", "gelu_tanh", "vocab", "scatter_rows", "lookup_rows", "interpolate")),
]


def main():
    events = [e for e in json.load(open(sys.argv[1]))["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not events:
        sys.exit("no GPU events in the trace")
    groups, names = collections.defaultdict(lambda: [0.0, 0]), collections.defaultdict(lambda: [0.0, 0])
    for event in events:
        name = event["name"].lower()
        group = next((label for label, keys in CLASSES if any(key in name for key in keys)), "elementwise and other")
        for table, key in ((groups, group), (names, event["name"][:110])):
            table[key][0] += event["dur"] / 1e3
            table[key][1] += 1
    begin, end = min(e["ts"] for e in events), max(e["ts"] + e["dur"] for e in events)
    busy, last = 0.0, begin
    for event in sorted(events, key=lambda e: e["ts"]):
        stop = event["ts"] + event["dur"]
        busy += max(0, stop - max(last, event["ts"]))
        last = max(last, stop)
    print(f"span {(end - begin) / 1e3:.1f} ms, busy {busy / 1e3:.1f} ms, idle {100 * (1 - busy / (end - begin)):.1f} %")
    for label, (ms, count) in sorted(groups.items(), key=lambda x: -x[1][0]):
        print(f"  {label:24} {ms:9.2f} ms {count:6}")
    for label, (ms, count) in sorted(names.items(), key=lambda x: -x[1][0])[: int(sys.argv[2]) if len(sys.argv) > 2 else 25]:
        print(f"    {ms:8.2f} ms {count:6}  {label}")


main()
