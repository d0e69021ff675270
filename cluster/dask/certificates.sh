#!/usr/bin/env bash
# Certificates for a Dask cluster: whoever holds node.pem and node.key may join it and run code there; nobody else can.
#   cluster/dask/certificates.sh DIR [DAYS]
set -euo pipefail
umask 077
folder=${1:?a folder for the certificates}
days=${2:-365}
mkdir -p "$folder"
cd "$folder"
[[ ! -e ca.key ]] || { echo "$folder: has certificates already. Remove them to make new ones." >&2; exit 2; }
openssl req -x509 -newkey rsa:3072 -nodes -days "$days" -subj "/CN=cryoseg Dask authority" -keyout ca.key -out ca.pem 2> log
openssl req -newkey rsa:3072 -nodes -subj "/CN=cryoseg Dask node" -keyout node.key -out node.csr 2>> log
openssl x509 -req -days "$days" -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out node.pem 2>> log
rm -f node.csr log
echo "$PWD: ca.pem, node.pem and node.key go to every node, for the user alone; keep ca.key away from them"
