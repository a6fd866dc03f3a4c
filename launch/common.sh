# Shared by launch/setup, launch/quickstart and launch/test. Source it from the repository root.
set -euo pipefail
started=$(date +%s)
say() { printf '\033[1m[%4ds]\033[0m %s\n' $(($(date +%s) - started)) "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
build=${HANOK_BUILD:-build}
python=.venv/bin/python
jobs=$(nproc)
# A compile of libtorch's headers takes about 1.5 GiB.
memory_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
if ((jobs > 1 && memory_gib / 2 < jobs)); then jobs=$((memory_gib / 2 > 1 ? memory_gib / 2 : 1)); fi
gpus() { { nvidia-smi -L 2>/dev/null || true; } | { grep -c '^GPU' || true; }; }  # a number, 0 where there is no driver

configure_and_build() {  # TARGET...
  local options=(-S . -B "$build" -G Ninja "-DHANOK_PYTHON=$PWD/$python")
  cmake "${options[@]}" >"$build.log" 2>&1 || { tail -30 "$build.log" >&2; die "cmake failed; the log is $build.log"; }
  grep -h '^-- torch' "$build.log" || true
  ninja -C "$build" -j "$jobs" "$@" >>"$build.log" 2>&1 || { grep -n -A15 'FAILED\|error:' "$build.log" | head -60 >&2; die "the build failed; the log is $build.log"; }
}
