"""Numbers in a few characters."""

from __future__ import annotations

import math
from typing import Any


def is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and math.isfinite(number)


def compact_number(number: float) -> str:
    """Return a number in a few characters: 804k, 10.7M, 1.24B, 1.2e15; "-" if it is not finite."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * size <= number < 1e12:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}".replace("e+", "e") if is_finite(number) else "-"
