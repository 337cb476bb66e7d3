#!/bin/sh
# PostgreSQL for tests/postgres.py, from the system's packages. Does nothing where it is installed.
set -eu
for folder in $(echo "$PATH" | tr : ' ') /usr/lib/postgresql/*/bin; do
    if [ -x "$folder/initdb" ]; then exit 0; fi
done
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --no-install-recommends postgresql-common >/dev/null
    # The tests make clusters of their own; Debian's would be started with the package.
    mkdir -p /etc/postgresql-common/createcluster.d
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/none.conf
    apt-get install -qq --no-install-recommends postgresql >/dev/null
else
    echo "The tests on PostgreSQL need it installed: sudo apt-get install postgresql" >&2
    exit 1
fi
