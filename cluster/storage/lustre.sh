#!/usr/bin/env bash
# The folder of a project on Lustre, before its first run: cluster/storage/lustre.sh /lustre/project
# A shard is one file, written once, whole, by one worker: 8 to 128 MB (see README.md). Many shards at once spread
# over the storage targets by themselves, so each lies on one of them; the few files that grow beyond (exported stacks of particles)
# take four, from 1 GB on.
set -euo pipefail
project=${1:?the folder of the project}
[[ ! -e $project/store.zarr ]] || { echo "lustre.sh: $project: has data already, whose stripes stay as they are." >&2; exit 2; }
mkdir -p "$project/export"
lfs setstripe --stripe-count 1 --stripe-size 4M "$project"
lfs setstripe --component-end 1G --stripe-count 1 --stripe-size 4M --component-end -1 --stripe-count 4 "$project/export"
lfs getstripe -d "$project"
