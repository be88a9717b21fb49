#!/usr/bin/env bash
# torch 2.13.0 on a CPU: F.scaled_dot_product_attention of queries that are NaN gives zeros for fewer than 16 queries of a
# causal text, and NaN from 16 on; its own plain implementation (SDPBackend.MATH) gives NaN for all. So a model whose
# query weights are broken writes a finite loss for a short text and nan for a longer one.
#
# Seen on 2026-11-30, Python 3.11, Linux, x86-64:
#   15 tokens: default 0 of 240 are nan, MATH 240 of 240
#   16 tokens: default 256 of 256 are nan, MATH 256 of 256
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

for tokens, hidden in ((15, True), (16, False)):
    keys = torch.randn(1, 2, tokens, 8, generator=torch.Generator().manual_seed(1))
    queries = torch.full_like(keys, float("nan"))
    default = F.scaled_dot_product_attention(queries, keys, keys, is_causal=True)
    with sdpa_kernel(SDPBackend.MATH):
        plain = F.scaled_dot_product_attention(queries, keys, keys, is_causal=True)
    counts = [int(each.isnan().sum()) for each in (default, plain)]
    print(f"{tokens} tokens: default {counts[0]} of {keys.numel()} are nan, MATH {counts[1]} of {keys.numel()}")
    assert counts == [0 if hidden else keys.numel(), keys.numel()]
    assert not hidden or (default == 0).all()
PY
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
"$folder/env/bin/python" "$folder/try.py"
echo "as stated"
