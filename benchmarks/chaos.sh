#!/bin/sh
# The chaos test in full: a sidecar is killed 200 times in some ten minutes, with disks that are full, directories that it
# may not write, and clocks that are set, while jobs of five kinds run. See tests/sidecar/test_chaos.py.
set -e
cd "$(dirname "$0")/.."
STEPWATCH_CHAOS_KILLS="${1:-200}" exec .venv/bin/python -m pytest -q tests/sidecar/test_chaos.py --timeout 3600
