# shellcheck shell=bash
# Sourced before a run or in a job: what is written in small pieces goes to the node's own disk. The project does not, for
# every node reads it; on one node alone it may lie there too (fastest), and is copied away at the end.
#   source cluster/storage/local-nvme.sh /scratch
scratch=${1:?the folder of the local disk}
[[ -d $scratch && -w $scratch ]] || { echo "local-nvme.sh: $scratch: expected a folder that can be written." >&2; return 2; }
scratch=$scratch/cryoseg-$(id -un)
mkdir -p "$scratch"
chmod 700 "$scratch"
# Ray's sessions and what it spills; its sockets allow for 107 characters in all.
export RAY_TMPDIR=$scratch/ray
[[ ${#RAY_TMPDIR} -le 40 ]] || RAY_TMPDIR=/tmp/cryoseg-ray-$(id -un)
# Compiled kernels: made once a node instead of read from the network by every worker.
export NUMBA_CACHE_DIR=$scratch/numba MPLCONFIGDIR=$scratch/matplotlib
# Dask's workers spill here.
export DASK_TEMPORARY_DIRECTORY=$scratch/dask CRYOSEG_SCRATCH=$scratch TMPDIR=$scratch
mkdir -p "$RAY_TMPDIR" "$NUMBA_CACHE_DIR" "$MPLCONFIGDIR" "$DASK_TEMPORARY_DIRECTORY"
