"""GPU time of a trace (log.profile_step) by class of kernel. usage: kernel_table.py TRACE.json [NAMES]  (NAMES: kernels listed singly)"""
import collections
import sys

import gpu_trace

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
    events = gpu_trace.events_of(sys.argv[1])
    if not events:
        sys.exit("no GPU events in the trace")
    groups, names = collections.defaultdict(lambda: [0.0, 0]), collections.defaultdict(lambda: [0.0, 0])
    for event in events:
        name = event["name"].lower()
        group = next((label for label, keys in CLASSES if any(key in name for key in keys)), "elementwise and other")
        for table, key in ((groups, group), (names, event["name"][:110])):
            table[key][0] += event["dur"] / 1e3
            table[key][1] += 1
    times = gpu_trace.times_of(events)
    span, idle = times["span_ms"], times["idle_ms"]
    print(f"span {span:.1f} ms, busy {span - idle:.1f} ms, idle {100 * idle / span:.1f} %")
    for label, (ms, count) in sorted(groups.items(), key=lambda x: -x[1][0]):
        print(f"  {label:24} {ms:9.2f} ms {count:6}")
    for label, (ms, count) in sorted(names.items(), key=lambda x: -x[1][0])[: int(sys.argv[2]) if len(sys.argv) > 2 else 25]:
        print(f"    {ms:8.2f} ms {count:6}  {label}")


main()
