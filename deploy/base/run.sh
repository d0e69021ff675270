#!/usr/bin/env bash
# The job. A file and not a line of the manifest: the submitter's shell would take its quotes and dollars apart.
set -uo pipefail
cryoseg run --config /etc/cryoseg/cryoseg.toml --project "${CRYOSEG_PROJECT:-/data/project}"
code=$?
# 3: the map is made, and something was set aside on the way, as the report says. To try again would not mend it.
if [ "$code" -eq 3 ]; then
    echo "cryoseg: done; what was set aside is in the report"
    exit 0
fi
exit "$code"
