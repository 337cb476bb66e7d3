#!/bin/sh
# btrfs and XFS for tests/test_reflinks.py, from the system's packages. Does nothing where they are.
set -eu
if command -v mkfs.btrfs >/dev/null && command -v mkfs.xfs >/dev/null; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --no-install-recommends btrfs-progs xfsprogs >/dev/null
else
    echo "tests/test_reflinks.py needs btrfs-progs and xfsprogs, e.g. by sudo apt-get install" >&2
    exit 1
fi
