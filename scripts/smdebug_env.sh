#!/usr/bin/env bash
# Makes .smdebug-venv: smdebug 1.0.34, the reference that benchmarks and compatibility tests compare with.
# It needs an older NumPy than Stepwatch does, hence an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv .smdebug-venv
.smdebug-venv/bin/python -m pip install -q -c constraints.txt torch "numpy<2.3" smdebug==1.0.34 requests pandas psutil
.smdebug-venv/bin/python -c "import smdebug; print('smdebug', smdebug.__version__, 'in .smdebug-venv')"
