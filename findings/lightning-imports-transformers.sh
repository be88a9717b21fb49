#!/usr/bin/env bash
# lightning 2.6.6 with torchmetrics 1.9.0: `import lightning` imports transformers, scipy and matplotlib, if they happen to
# be installed, since torchmetrics looks at import for what its text, audio and plotting metrics could use. Installing an
# unrelated package makes every command of a Lightning project start later.
#
# Seen on 2026-11-28, Linux x86-64, Python 3.11, torch 2.13.0, transformers 5.23.0, two cores, warm disk cache:
#   without them: [] 1.6 s
#   with them: ['matplotlib', 'scipy', 'transformers'] 2.9 s
# The seconds are not checked.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet --disable-pip-version-check install)
cat > "$folder/try.py" <<'PY'
import sys
import time

import torch

start = time.perf_counter()
import lightning

seconds = time.perf_counter() - start
loaded = [name for name in ("matplotlib", "scipy", "transformers") if name in sys.modules]
print(loaded, f"{seconds:.1f} s")
assert loaded == sys.argv[1:], "other packages than stated"
PY
"${pip[@]}" lightning==2.6.6 torchmetrics==1.9.0 torch==2.13.0 numpy==2.2.6
for turn in first second; do "$folder/venv/bin/python" "$folder/try.py"; done
"${pip[@]}" transformers==5.23.0 scipy==1.15.3 matplotlib==3.10.7
for turn in first second; do "$folder/venv/bin/python" "$folder/try.py" matplotlib scipy transformers; done
echo "as stated"
