#!/usr/bin/env bash
# Measure every model on every stack and write the report. Options: perf/run.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" -m perf run "$@"
