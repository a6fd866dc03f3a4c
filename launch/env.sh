# Source this once per shell:  . launch/env.sh
# It puts `trainer` on PATH, and tells Open MPI what a plain `mpirun -np 2 trainer` needs. No variable here changes mathematics.
_hanok_root=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
export PATH="$_hanok_root/launch/bin:${HANOK_BUILD:-$_hanok_root/build}/launch:$_hanok_root/.venv/bin:$PATH"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1  # containers and notebooks run as root
export OMPI_MCA_rmaps_base_oversubscribe=1                         # more ranks than cores is allowed
export OMPI_MCA_hwloc_base_binding_policy=none                     # do not pin all threads of a rank to one core
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none  # the same two, to Open MPI 5
export OMPI_MCA_mpi_yield_when_idle=1                              # a waiting rank gives its core away
export OMPI_MCA_btl_vader_single_copy_mechanism=none               # containers forbid process_vm_readv; quiet and safe
export MKL_CBWR="${MKL_CBWR:-AUTO,STRICT}"                         # the same bits on every run, whatever the threads (COMPATIBLE: a fifth of the speed)
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"  # threads spin 0.1 ms, then sleep: spinning on (14 ms) takes the cores from whoever else has work
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"             # large tensors on large pages: a sixth of the page faults
unset _hanok_root
