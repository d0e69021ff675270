# shellcheck shell=bash disable=SC2034
# Functions of the Slurm scripts beside this file; they source it. Everything of a job is its own: token, port, folder.

fail() {
    echo "cryoseg: $*" >&2
    exit 2
}

# The settings and the project of this job; both must be there for every node.
read_arguments() {
    [[ $# -ge 2 ]] || fail "expected SETTINGS.toml and PROJECT, got $# arguments."
    settings=$1 project=$2
    shift 2
    options=("$@")
    [[ -r $settings ]] || fail "$settings: expected a file of settings. \`cryoseg init\` writes one."
    command -v cryoseg > /dev/null || fail "cryoseg is not on the PATH. Activate its environment before sbatch."
}

# Whoever reaches Ray's ports can run code as this user, so a token is drawn for the job and goes to its steps alone.
prepare_ray() {
    export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
    # Ray's sockets live below it, and their paths may have 107 characters.
    export RAY_TMPDIR=${SLURM_TMPDIR:-/tmp}/cryoseg-$SLURM_JOB_ID
    [[ ${#RAY_TMPDIR} -le 40 ]] || RAY_TMPDIR=/tmp/cryoseg-$SLURM_JOB_ID
    # Its name can be guessed: a folder that another user made before would let him in.
    mkdir -p "$RAY_TMPDIR"
    [[ -O $RAY_TMPDIR && ! -L $RAY_TMPDIR ]] || fail "$RAY_TMPDIR: expected a folder of yours, got another user's, or a link."
    chmod 700 "$RAY_TMPDIR"
    unset RAY_ADDRESS
    port=$((20000 + SLURM_JOB_ID % 20000))
    gpus=${SLURM_GPUS_ON_NODE:-0}
}

# Where a GPU was given, each worker takes one, and an equal share of the cores.
add_gpu_options() {
    [[ $gpus -gt 0 ]] || return 0
    local cores=${1:?}
    options+=(--set engine.gpus_per_worker=1 --set "engine.cpus_per_worker=$((cores / gpus > 0 ? cores / gpus : 1))")
}

# An address of this node that other nodes reach.
own_address() {
    if [[ ${SLURM_JOB_NUM_NODES:-1} -eq 1 ]]; then
        echo 127.0.0.1
        return
    fi
    local address
    for address in $(hostname --all-ip-addresses); do
        [[ $address == 127.* || $address == *:* ]] || { echo "$address"; return; }
    done
    fail "$(hostname) has no address that another node could reach."
}

# `ray symmetric-run` ends with `ray stop`, which ends every Ray process of the user on the node.
refuse_company() {
    local others
    others=$(squeue --noheader --states=RUNNING --user="$(id -un)" --nodelist="$SLURM_JOB_NODELIST" --format=%A |
        grep --invert-match --line-regexp "$SLURM_JOB_ID" | tr '\n' ' ' || true)
    [[ -z $others ]] || fail "other jobs of yours run on these nodes (${others% }). Use shared.sbatch, or --exclusive nodes."
}

# Run a command that Slurm's early warning (--signal=B:TERM) or a preemption may end: the job goes back to the queue,
# and what it had finished is in the project's ledger. Exit code 3, a map with something set aside, is no failure.
run_requeueable() {
    local code=0 warned=0 pid
    "$@" &
    pid=$!
    trap 'warned=1; kill -TERM "$pid" 2> /dev/null || true' TERM
    while true; do
        code=0
        wait "$pid" || code=$?
        kill -0 "$pid" 2> /dev/null || break
    done
    rm -rf "$RAY_TMPDIR"
    if [[ $warned -eq 1 ]]; then
        echo "cryoseg: the job's time is over; it goes back to the queue and on where it stopped"
        scontrol requeue "$SLURM_JOB_ID"
        exit 0
    fi
    if [[ $code -eq 3 ]]; then
        echo "cryoseg: done; what was set aside is in the report"
        exit 0
    fi
    exit "$code"
}
