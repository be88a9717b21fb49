#!/usr/bin/env bash
# tiktoken 0.10.0: Encoding.encode_to_numpy(text, disallowed_special=()) gives the special token's id for the text
# "<|endoftext|>", where Encoding.encode with the same arguments spells it letter by letter. A corpus prepared by the
# quicker of the two calls holds ends of text that its author did not put there. 0.11.0 spells it in both.
#
# Seen on 2026-11-28, Linux x86-64, Python 3.11:
#   0.10.0 encode: 13 ids, the special one not among them; encode_to_numpy: [256]
#   0.11.0 encode: 13 ids; encode_to_numpy: the same 13
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import sys
from importlib.metadata import version

import tiktoken

bytes_only = {bytes([value]): value for value in range(256)}
encoding = tiktoken.Encoding(
    "bytes", pat_str=r"\S+|\s+", mergeable_ranks=bytes_only, special_tokens={"<|endoftext|>": 256}
)
text = "<|endoftext|>"
listed = encoding.encode(text, disallowed_special=())
array = encoding.encode_to_numpy(text, disallowed_special=()).tolist()
print(version("tiktoken"), "encode:", listed, "encode_to_numpy:", array)
assert listed == list(text.encode()), "encode"
expected = {"special": [256], "text": listed}[sys.argv[1]]
assert array == expected, "encode_to_numpy"
PY
for pair in 0.10.0:special 0.11.0:text; do
    python3 -m venv "$folder/${pair%:*}"
    "$folder/${pair%:*}/bin/pip" install --quiet --disable-pip-version-check "tiktoken==${pair%:*}" numpy==2.2.6
    "$folder/${pair%:*}/bin/python" "$folder/try.py" "${pair#*:}"
done
echo "as stated"
