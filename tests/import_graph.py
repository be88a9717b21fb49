"""`python -m tests.import_graph`: which room imports which, as the code is; docs/architecture.md holds what it prints.

With `--lines` it counts the files and lines of each room, too.
"""

from __future__ import annotations

import sys
from collections import Counter

from tests.test_layering import FILES, PACKAGE, ROOMS, imports, room

VERBS = "the verbs"


def arrows() -> Counter[tuple[str, str]]:
    """{(room, room below it): how many files import from it}."""
    found: Counter[tuple[str, str]] = Counter()
    for path in FILES:
        above = room(path) or VERBS
        below = {name.split(".")[1] for name in imports(path) if name.startswith("gptlab.")} & ROOMS.keys()
        found.update((above, each) for each in below - {above})
    return found


def lines(counts: bool = False) -> list[str]:
    """A line a room from the ground up: the rooms that it imports, and before them its files and lines of code."""
    found = arrows()
    upward = [pair for pair in found if [*ROOMS, VERBS].index(pair[0]) < [*ROOMS, VERBS].index(pair[1])]
    shown = [f"{len(ROOMS) + 1} rooms with the verbs, {len(found)} arrows between them, {len(upward)} upward"]
    for name in (*ROOMS, VERBS):
        files = [path for path in FILES if (room(path) or VERBS) == name]
        size = f"{len(files):>3} files {sum(len(path.read_text().splitlines()) for path in files):>6,} lines   "
        below = ", ".join(each for each in ROOMS if (name, each) in found) or "nothing of ours"
        shown.append(f"{name:<13}{size * counts}imports {below}")
    return shown


if __name__ == "__main__":
    assert PACKAGE.is_dir()
    print("\n".join(lines("--lines" in sys.argv)))
