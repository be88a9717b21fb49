#!/usr/bin/env bash
# transformers 5.2.0: a GPT-2 whose config says scale_attn_weights=false has other logits under "sdpa", which is the
# default, than under "eager": the switch does not reach scaled_dot_product_attention, so that scores are divided by
# sqrt(head size) all the same, without a word. A model that was trained without the scale is read wrongly. 5.23.0 gives
# the same logits under both.
#
# Seen on 2026-11-28, Linux x86-64, Python 3.11, torch 2.13.0: the largest difference between the two
#   5.2.0   1.97
#   5.23.0  6.3e-06
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import sys

import torch
import transformers

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
sizes = dict(n_layer=2, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
config = transformers.GPT2Config(**sizes, scale_attn_weights=False, initializer_range=0.5)
model = transformers.GPT2LMHeadModel(config).eval()
ids = torch.randint(32, (1, 12))
logits = {}
for kind in ("eager", "sdpa"):
    model.set_attn_implementation(kind)
    logits[kind] = model(ids).logits.detach()
difference = (logits["eager"] - logits["sdpa"]).abs().max().item()
print(transformers.__version__, f"{difference:.2g}")
assert (difference > 0.1) == (sys.argv[1] == "different"), "not as stated"
PY
for pair in 5.2.0:different 5.23.0:alike; do
    python3 -m venv "$folder/${pair%:*}"
    "$folder/${pair%:*}/bin/pip" install --quiet --disable-pip-version-check "transformers==${pair%:*}" torch==2.13.0 numpy==2.2.6
    "$folder/${pair%:*}/bin/python" "$folder/try.py" "${pair#*:}"
done
echo "as stated"
