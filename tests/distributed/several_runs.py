"""Runs one after the other in this process, each a command line of the list in a JSON file; see test_processes.py.

`torchrun --nproc-per-node 2 -m tests.distributed.several_runs runs.json` makes each with two processes, and imports
torch once. An exit code that is not the expected one ends everything.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gptlab import train

for expected, *arguments in json.loads(Path(sys.argv[1]).read_text()):
    sys.argv[:] = ["gptlab.train", *arguments]
    code: object = 0
    try:
        train.main()
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr, flush=True)
            code = 1
    assert code == expected, f"{arguments} ended with {code}"
