#!/usr/bin/env bash
# torch 2.13.0: looking at a gathered parameter of FSDP2 by .numpy() makes its storage one that cannot be resized, for
# good, even when the array is gone. The next reshard(), which frees the storage by resizing it to nothing, raises a
# RuntimeError that names neither. Reading the same numbers by tolist() leaves it as it was.
#
# Seen on 2026-11-30, Linux x86-64, Python 3.11, gloo, one process, after unshard():
#   tolist() and reshard()  works
#   numpy() and reshard()   Trying to resize storage that is not resizable
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=0, world_size=1)


def looked_at(look):
    model = torch.nn.Linear(4, 4)
    fully_shard(model, reshard_after_forward=False)
    model.unshard()
    look(model.weight.detach())
    try:
        model.reshard()
    except RuntimeError as error:
        return str(error)
    return "works"


found = looked_at(lambda w: w.tolist()), looked_at(lambda w: w.numpy())
print("tolist() and reshard(): %s; numpy() and reshard(): %s" % found)
assert found == ("works", "Trying to resize storage that is not resizable"), "not as stated"
dist.destroy_process_group()
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
"$folder/venv/bin/python" "$folder/try.py" "$folder"
echo "as stated"
