"""The rules of the house that a README alone would not keep: who may include whom, which library lives in which room, where the
environment may be read, and that registered names and config keys are used. Prints every violation; exit 1 if there is one."""
import os
import re
import subprocess
import sys

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
FLOORS = {
    "base": {"base"},
    "configs": {"base", "configs"},
    "parallel": {"base", "configs", "parallel"},
    "dataio": {"base", "configs", "dataio"},
    "model": {"base", "configs", "parallel", "model"},
    "trainer": {"base", "configs", "parallel", "dataio", "model", "trainer"},
    "launch": {"base", "configs", "parallel", "dataio", "model", "trainer", "launch"},
}
# Headers that other folders may include. Everything else is a room.
DOORS = {
    "base": {"clock.h", "error.h", "log.h", "host_name.h", "moment.h", "dims.h", "tensor.h", "upload.h", "cuda/launch.h", "cuda/call.h", "cuda/pin.h", "cuda/device.cuh"},
    "configs": {"schema/config.h", "schema/read.h", "schema/check.h", "schema/gpu.h"},
    "parallel": {"mesh.h", "comm.h", "groups.h", "collectives.h", "plan.h", "redistribute.h", "param.h", "init.h", "grad_buffer.h", "kept.h", "grad_sync.h", "side_stream.h", "pipeline_schedule.h", "pipeline_run.h", "pass_times.h"},
    "dataio": {"tokenizer.h", "chat.h", "image.h", "vision_prep.h", "safetensors.h", "tensor_store.h", "sample.h", "batch.h",
               "pack.h", "dataset.h", "sampler.h", "loader.h", "ordered_workers.h", "file_io.h", "file_lock.h"},
    "model": {"module.h", "vlm.h", "registry.h", "activations.h", "balance.h", "cost.h", "hf/name_map.h", "loss/cross_entropy.h"},
    "trainer": {"agree.h", "configured_dtype.h", "freeze.h", "train_loop.h", "run_stages.h", "checkpoint.h", "weights.h", "run_folder.h", "data.h", "evaluate.h", "progress.h",
                "optimizer.h", "prediction.h", "state.h", "version.h"},
    "launch": {"command.h"},
}
MODEL_MAY_USE = {"grad_buffer.h", "kept.h", "side_stream.h", "pipeline_schedule.h", "param.h", "plan.h", "redistribute.h", "collectives.h", "groups.h", "init.h"}
ROOMS = {  # library header -> the only places that may include it
    r"mpi\.h": ("parallel/", "launch/"),
    r"nccl\.h": ("parallel/", "launch/"),
    r"hdf5\.h": ("dataio/",),
    r"glog/": ("base/log.cpp",),
    r"gflags/": ("launch/",),
    r"yaml-cpp/": ("configs/schema/",),
    r"(torch|ATen|c10)/": None,  # anywhere but .cu
}


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [f for f in out.stdout.split("\n") if f and os.path.isfile(os.path.join(ROOT, f))]


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def include_violations(path, text):
    top = path.split("/")[0]
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(r'\s*#include\s*[<"]([^>"]+)[>"]', line)
        if not match:
            continue
        header = match[1]
        for pattern, homes in ROOMS.items():
            if re.match(pattern, header):
                if homes is None:
                    if path.endswith((".cu", ".cuh")):
                        yield f"{path}:{number}: torch header in a .cu"
                elif not path.startswith(homes):
                    yield f"{path}:{number}: {header} outside its room {homes}"
        folder, _, rest = header.partition("/")
        if top not in FLOORS or folder not in FLOORS:
            continue
        if folder not in FLOORS[top]:
            yield f"{path}:{number}: {top}/ includes {header}, against the floors"
        elif folder != top and rest not in DOORS[folder]:
            yield f"{path}:{number}: {header} is a room of {folder}/, not a door"
        elif top == "model" and folder == "parallel" and rest not in MODEL_MAY_USE:
            yield f"{path}:{number}: model code includes {header}"


def main():
    violations = []
    code = [f for f in tracked() if re.search(r"\.(h|cpp|cu|cuh)$", f)]
    product = [f for f in code if f.split("/")[0] in FLOORS]
    for path in product:
        text = read(path)
        violations += include_violations(path, text)
        if "getenv" in text and not path.startswith("launch/"):
            violations.append(f"{path}: getenv outside launch/")
        for match in re.finditer(r"\b(TODO|FIXME|XXX)\b|catch\s*\(\.\.\.\)", text):
            violations.append(f"{path}: {match[0]}")
        if not text.isascii():
            violations.append(f"{path}: non-ASCII in code")
    for folder, doors in DOORS.items():
        for door in doors:
            if not os.path.isfile(os.path.join(ROOT, folder, door)):
                violations.append(f"tests/arch/structure.py: door {folder}/{door} does not exist")
        if not os.path.isfile(os.path.join(ROOT, folder, "README.md")):
            violations.append(f"{folder}/: no README.md")
        elif read(f"{folder}/README.md").count("\n") > 60:
            violations.append(f"{folder}/README.md: more than 60 lines")
    # Every config key is read somewhere outside the schema.
    schema = read("configs/schema/config.h")
    keys = set(re.findall(r'v\("(\w+)"', schema))
    users = "\n".join(read(f) for f in product if not f.startswith("configs/schema/config.h"))
    for key in sorted(keys):
        if not re.search(rf"[.>]{key}\b", users):
            violations.append(f"configs/schema/config.h: key {key} is never read")
    # Every registered type appears in a config and in a test.
    configs = "\n".join(read(f) for f in tracked("configs") if f.endswith(".yaml"))
    tests = "\n".join(read(f) for f in tracked("tests") if f.endswith((".cpp", ".py", ".h")))
    if os.path.isfile(os.path.join(ROOT, "model/registry.cpp")):
        for name in re.findall(r'\{"(\w+)",\s*&', read("model/registry.cpp")):
            if name != "none" and name not in configs:
                violations.append(f"model/registry.cpp: {name} is in no config")
            if name not in tests:
                violations.append(f"model/registry.cpp: {name} is in no test")
    for violation in violations:
        print(violation)
    print(f"structure: {len(code)} files, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
