#!/usr/bin/env bash
# Starts the trainer on this allocation:  cluster/run.sh NUM_RANKS [trainer arguments...]
# Returns the trainer's exit code: 75 and 76 mean that a restart may help (launch/README.md).
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/launch/env.sh"
ranks=$1; shift
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-}  # empty: the program divides the cores of a node among its ranks
[[ -z $OMP_NUM_THREADS ]] && unset OMP_NUM_THREADS
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}        # a failing network says why
exec mpirun -np "$ranks" ${HANOK_HOSTFILE:+--hostfile "$HANOK_HOSTFILE"} trainer "$@"
