#!/usr/bin/env bash
# Makes .smdebug-venv: smdebug 1.0.34, the reference that benchmarks and compatibility tests compare with.
# It needs an older NumPy and protobuf than Stepwatch does, hence an environment of its own; torch and pandas, which
# both can use, are those of .venv where that has been made.
set -euo pipefail
cd "$(dirname "$0")/.."
shared=.venv/bin/python
if [ -x "$shared" ] && "$shared" -c "import pandas, torch" 2>/dev/null; then
    packages=()
else
    shared=
    packages=(torch pandas)
fi
"${shared:-${PYTHON:-python3}}" -m venv --clear .smdebug-venv
.smdebug-venv/bin/python -m pip install -q -c constraints.txt "numpy<2.3" smdebug==1.0.34 requests psutil "${packages[@]}"
if [ -n "$shared" ]; then
    # Added at the end of the path: what the reference has itself comes first.
    "$shared" -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
        >"$(.smdebug-venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/shared.pth"
fi
.smdebug-venv/bin/python -c "import smdebug, torch; print('smdebug', smdebug.__version__, 'in .smdebug-venv')" | tail -1
