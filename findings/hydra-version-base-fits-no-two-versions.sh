#!/usr/bin/env bash
# hydra-core 1.3.8 and 1.4.0rc3: no call of hydra.initialize is silent on both. 1.3.8 warns if version_base is left out,
# and then follows the rules of 1.1; 1.4 warns if it is given, with any value, None too. What must run on both without a
# warning has to ask for the version first. (1.4.0rc3 needs omegaconf 2.4.1rc1, which pip takes only with --pre.)
#
# Seen on 2026-11-28, Python 3.11:
#   1.3.8:    left out Hydra14MigrationWarning; "1.3" silent; None silent
#   1.4.0rc3: left out silent; "1.3" Hydra15MigrationWarning; None Hydra15MigrationWarning
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/try.py" <<'PY'
import sys
import warnings

import hydra

found = []
for given in ({}, {"version_base": "1.3"}, {"version_base": None}):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with hydra.initialize_config_dir(sys.argv[1], **given):
            pass
    found.append(caught[0].category.__name__ if caught else "silent")
print(hydra.__version__, *found)
assert found == sys.argv[2:], "other warnings than stated"
PY
python3 -m venv "$folder/old"
"$folder/old/bin/pip" install --quiet --disable-pip-version-check hydra-core==1.3.8 omegaconf==2.3.1
"$folder/old/bin/python" "$folder/try.py" "$folder" Hydra14MigrationWarning silent silent
python3 -m venv "$folder/new"
"$folder/new/bin/pip" install --quiet --disable-pip-version-check --pre hydra-core==1.4.0rc3 omegaconf==2.4.1rc1
"$folder/new/bin/python" "$folder/try.py" "$folder" silent Hydra15MigrationWarning Hydra15MigrationWarning
echo "as stated"
