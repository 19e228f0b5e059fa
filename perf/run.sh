#!/usr/bin/env bash
# Measure every model on every stack and write the report. Options: perf/run.sh --help
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
make --silent -C "$root" install
# -P: what lies in the current folder, from which paths are taken, is not imported
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$root/.venv/bin/python" -P -m perf run "$@"
