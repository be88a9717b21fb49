#!/usr/bin/env bash
# torch 2.13.0 for x86-64, with MKL inside: torch.set_num_threads(torch.get_num_threads()), which looks like nothing, turns
# MKL_DYNAMIC off for good. By default MKL may give a small matrix product fewer threads than there are; after any call
# of set_num_threads every product gets them all, and no call of torch's turns that on again. On two cores a training
# step of a GPT of 0.8M parameters then took 1.09 times as long (median of 25 rounds, in turn).
#
# Seen on 2026-11-28, Python 3.11 (mkl_serv_get_dynamic is MKL's mkl_get_dynamic, under the name it has inside torch):
#   MKL_DYNAMIC 1 before, 0 after, with the same number of threads
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import ctypes
import pathlib

import torch

dynamic = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).mkl_serv_get_dynamic
threads, before = torch.get_num_threads(), dynamic()
torch.set_num_threads(threads)
print(f"MKL_DYNAMIC {before} before, {dynamic()} after, with {threads} threads before and {torch.get_num_threads()} after")
assert (before, dynamic()) == (1, 0)
assert torch.get_num_threads() == threads
PY
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
"$folder/env/bin/python" "$folder/try.py"
echo "as stated"
