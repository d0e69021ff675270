#!/usr/bin/env bash
# Ray on a node of machines of your own, by hand or from systemd (Type=exec, Restart=on-failure); the same file on every node.
#   openssl rand -hex 32 > ray-token; chmod 600 ray-token      once; the same file on every node
#   CRYOSEG_TOKEN_FILE=ray-token cluster/ray/node.sh head [options of `ray start`]
#   CRYOSEG_TOKEN_FILE=ray-token cluster/ray/node.sh worker HEAD[:6379]
#   cluster/ray/node.sh stop      what this file started on the node, and no other Ray
# Fixed ports, so that a firewall can close all others: 6379, 6380-6384, 8080 (metrics) and 10100-10199 between the nodes.
# 10001, where clients may send work from elsewhere with the token, is needed by nobody here.
# Address of the node: CRYOSEG_NODE_ADDRESS, else the first that is not loopback. Scratch: CRYOSEG_SCRATCH (local NVMe).
# A worker waits for the head: CRYOSEG_WAIT seconds (600).
set -euo pipefail

fail() {
    echo "node.sh: $*" >&2
    exit 2
}

role=${1:-}
[[ $role == head || $role == worker || $role == stop ]] || fail "expected head, worker or stop, got '$role'."
export RAY_TMPDIR=${CRYOSEG_SCRATCH:-/tmp}/ray
# Its sockets live below it, and their paths may have 107 characters.
[[ ${#RAY_TMPDIR} -le 40 ]] || fail "$RAY_TMPDIR: expected at most 40 characters, got ${#RAY_TMPDIR}."
mkdir -p "$RAY_TMPDIR"
if [[ $role == stop ]]; then
    started() { "$1" --pidfile "$RAY_TMPDIR/node.pid" --full 'node\.sh|ray start' > /dev/null 2>&1; }
    started pkill || exit 0
    while started pgrep; do sleep 0.2; done
    exit 0
fi
token=${CRYOSEG_TOKEN_FILE:?name the file that holds the token of the cluster}
[[ -s $token ]] || fail "$token: expected a token. openssl rand -hex 32 > $token"
# Whoever reads the token can run code on every node.
[[ $(stat -c %a "$token") == [46]00 ]] || fail "$token: expected a file of its owner alone. chmod 600 $token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0
unset RAY_ADDRESS RAY_AUTH_TOKEN
echo $$ > "$RAY_TMPDIR/node.pid"

own_address() {
    local address
    for address in $(hostname --all-ip-addresses); do
        [[ $address == 127.* || $address == *:* ]] || { echo "$address"; return; }
    done
    fail "$(hostname) has no address that another node could reach. Set CRYOSEG_NODE_ADDRESS."
}
address=${CRYOSEG_NODE_ADDRESS:-$(own_address)}

common=(--block --disable-usage-stats --node-ip-address "$address"
    --object-store-memory "${CRYOSEG_OBJECT_STORE:-2147483648}"
    --node-manager-port 6380 --object-manager-port 6381 --runtime-env-agent-port 6382
    --dashboard-agent-listen-port 6383 --dashboard-agent-grpc-port 6384
    --metrics-export-port 8080 --min-worker-port 10100 --max-worker-port 10199)
if [[ $role == head ]]; then
    # The head holds the cluster together and runs drivers; it takes no units. Its pages are for loopback alone.
    exec ray start --head --port 6379 --num-cpus 0 --num-gpus 0 --dashboard-host 127.0.0.1 "${common[@]}" "${@:2}"
fi
head=${2:?the address of the head}
[[ $head == *:* ]] || head=$head:6379
# Nodes come up in any order, and `ray start` gives up on a head that does not answer yet.
for ((tries = 0; tries < ${CRYOSEG_WAIT:-600}; tries++)); do
    (: < "/dev/tcp/${head%:*}/${head##*:}") 2> /dev/null && break
    sleep 1
done
exec ray start --address "$head" "${common[@]}"
