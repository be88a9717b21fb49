#!/usr/bin/env bash
# datasets 5.2.0: save_to_disk writes a data set without rows, and load_from_disk cannot open what it wrote: IndexError.
# One split that was made of an empty list makes the whole DatasetDict unreadable, although the Arrow files and indexes
# of the other splits are whole; each of them opens by its own folder. A split that a filter has emptied can be loaded.
#
# Seen on 2026-11-30, Linux x86-64, Python 3.11:
#   DatasetDict: IndexError: list index out of range
#   emptied by a filter: {'train': 2, 'test': 0}
#   train alone: ['one', 'two']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import sys

import datasets

datasets.disable_progress_bars()
place = sys.argv[1] + "/set"
rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
splits = datasets.DatasetDict({"train": rows, "test": datasets.Dataset.from_dict({"text": []})})
splits.save_to_disk(place)
try:
    datasets.load_from_disk(place)
except IndexError as error:
    print("DatasetDict: IndexError:", error)
else:
    raise SystemExit("not as stated: it can be loaded")
emptied = datasets.DatasetDict({"train": rows, "test": rows.filter(lambda row: row["text"] == "three")})
emptied.save_to_disk(place + "-filtered")
print("emptied by a filter:", datasets.load_from_disk(place + "-filtered").num_rows)
alone = datasets.load_from_disk(place + "/train")
print("train alone:", alone["text"][:])
assert alone["text"][:] == ["one", "two"]
PY
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 numpy==2.2.6
"$folder/venv/bin/python" "$folder/try.py" "$folder"
echo "as stated"
