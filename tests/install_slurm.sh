#!/bin/sh
# Slurm with accounting for tests/slurm_cluster.py, from the system's packages. Does nothing where
# it is installed.
set -eu
PATH=$PATH:/usr/sbin:/sbin
complete=yes
for name in slurmctld slurmd slurmdbd sbatch sacct munged mariadbd mariadb-install-db; do
    command -v "$name" >/dev/null || complete=no
done
if [ "$complete" = yes ]; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --no-install-recommends \
        slurm-wlm slurmdbd munge mariadb-server-core mariadb-client-core >/dev/null
else
    echo "The tests on Slurm need it installed: sudo apt-get install slurm-wlm slurmdbd munge" \
        "mariadb-server-core mariadb-client-core" >&2
    exit 1
fi
