#!/usr/bin/env bash
# A Dask scheduler for sites that run Dask: cluster/dask/scheduler.sh /shared/dask-scheduler.json
# The file tells workers and the driver where it is. Its pages, and metrics under /metrics, are on loopback.
set -euo pipefail
file=${1:?the scheduler file, on storage that all nodes see}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export DASK_CONFIG=${DASK_CONFIG:-$here}
exec dask scheduler --protocol tls --scheduler-file "$file" --port "${CRYOSEG_DASK_PORT:-8786}" \
    --dashboard-address "127.0.0.1:${CRYOSEG_DASK_DASHBOARD:-8787}"
