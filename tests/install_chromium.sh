#!/bin/sh
# The browser of tests/test_page.py, from the system's packages. Does nothing where there is one.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --no-install-recommends chromium >/dev/null
else
    echo "tests/test_page.py needs a browser: install chromium, e.g. sudo apt-get install chromium" >&2
    exit 1
fi
