#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1: what a list, an object or a number under the key of a text becomes in a streamed .jsonl
# depends on where its line stands. Within the first 10 MB the column turns into the feature Json, and the row comes back
# as the list that it is. After them the column is a string, and the same line comes back as a string that holds the
# list's JSON, without an error or a warning: whoever checks isinstance(text, str) trains on brackets and quotes.
#
# Seen on 2026-11-28, Python 3.11:
#   line 2:      ['not', 'a', 'text']
#   line 20001:  '["not","a","text"]', of type str; an object and a number likewise
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import json
import pathlib
import sys

import datasets

LIST, OBJECT, NUMBER = ["not", "a", "text"], {"a": 1}, 7
seen = {}
for place in (1, 20_000):
    for other in (LIST, OBJECT, NUMBER):
        folder = pathlib.Path(sys.argv[1], f"{place}-{type(other).__name__}")
        folder.mkdir()
        rows = [{"text": "word " * 150}] * place + [{"text": other}]
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        *_, last = datasets.load_dataset(str(folder), split="train", streaming=True)
        seen[place, type(other).__name__] = last["text"]
        print(f"line {place + 1}: {last['text']!r}")
assert seen[1, "list"] == LIST
assert seen[20_000, "list"] == json.dumps(LIST, separators=(",", ":"))
assert seen[20_000, "dict"] == json.dumps(OBJECT, separators=(",", ":"))
assert seen[20_000, "int"] == "7"
PY
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
HF_DATASETS_CACHE="$folder/cache" HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$folder/try.py" "$folder"
echo "as stated"
