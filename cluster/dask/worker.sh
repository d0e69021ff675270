#!/usr/bin/env bash
# Workers of a node: cluster/dask/worker.sh /shared/dask-scheduler.json [WORKERS]
# One thread each: a fold keeps a core busy and holds one padded sum of Fourier space.
set -euo pipefail
file=${1:?the scheduler file}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export DASK_CONFIG=${DASK_CONFIG:-$here}
exec dask worker --protocol tls --scheduler-file "$file" --nworkers "${2:-1}" --nthreads 1 \
    --memory-limit "${CRYOSEG_DASK_MEMORY:-auto}" --dashboard-address 127.0.0.1:0 \
    --local-directory "${CRYOSEG_SCRATCH:-/tmp}"
