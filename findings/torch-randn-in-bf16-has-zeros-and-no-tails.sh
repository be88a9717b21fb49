#!/usr/bin/env bash
# torch 2.11.0, on a CPU: torch.randn(..., dtype=torch.bfloat16) draws an exact 0 six times in a thousand and nothing
# beyond 3.33, since it forms its normal numbers out of uniform ones of 8 bits; of fp16 7 in ten thousand are 0. Weights
# that are drawn in bf16, and noise, are not normal. 2.13.0 draws in fp32 and rounds: no zero, the same tails as fp32.
# (torch.rand in bf16 has 256 values in 2.11.0.)
#
# Seen on 2026-11-28, Linux x86-64, Python 3.10 and 3.11, a million numbers, seed 0:
#   2.11.0 bf16: 6166 zeros, largest 3.328; fp16: 716 zeros, largest 3.904; fp32: 0 zeros, largest 4.761
#   2.13.0 bf16: 0 zeros, largest 4.750; fp16: 0 zeros, largest 4.762; fp32: 0 zeros, largest 4.761
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import sys
import warnings

warnings.simplefilter("ignore")  # numpy is not installed
import torch

torch.set_num_threads(1)
found = []
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    torch.manual_seed(0)
    x = torch.randn(10**6, dtype=dtype)
    found.append(((x == 0).sum().item(), x.abs().max().item()))
print(torch.__version__, ", ".join(f"{zeros} zeros, largest {most:.3f}" for zeros, most in found))
(bf16, bf16_most), (fp16, fp16_most), (fp32, fp32_most) = found
if sys.argv[1] == "coarse":
    assert 5000 < bf16 < 7500, "zeros in bf16"
    assert bf16_most < 3.5 < fp16_most < 4, "tails"
    assert 400 < fp16 < 1000, "zeros in fp16"
else:
    assert bf16 == fp16 == 0, "zeros"
    assert min(bf16_most, fp16_most) > 4.5, "tails"
assert fp32 == 0, "zeros in fp32"
assert fp32_most > 4.5, "tails of fp32"
PY
for pair in 2.11.0:coarse 2.13.0:fine; do
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==${pair%:*}"
    "$folder/venv/bin/python" "$folder/try.py" "${pair#*:}"
    rm -rf "$folder/venv"
done
echo "as stated"
