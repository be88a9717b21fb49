"""Types of command-line arguments, for argparse: what a shell hands over empty is refused, and ~ is the home folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from gptlab.system.errors import UserError
from gptlab.system.files import expand_user

BITS = {"int8": 8, "int4": 4}  # of the weights, by --precision


def check_bits(precision: str, device: str, instead: str = "bf16") -> None:
    """Check that --precision has its device.

    Args:
        instead: what to use there.

    Raises:
        UserError: weights of few bits are asked for on another than a CPU.
    """
    if precision in BITS and device not in ("auto", "cpu"):
        raise UserError(f"--precision {precision} is for a CPU: leave --device {device} out, or use {instead}")


def some_text(given: str) -> str:
    """Return `given`.

    Raises:
        ArgumentTypeError: it is empty.
    """
    if not given.strip():
        raise argparse.ArgumentTypeError(
            "is empty (a variable that the shell does not know?); give one, or leave it out"
        )
    return given


def some_path(given: str) -> Path:
    """Return `given` as a path, with ~ replaced by the user's home.

    Raises:
        ArgumentTypeError: it is empty, or begins with ~ and an unknown user.
    """
    try:
        return expand_user(some_text(given))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def some_name(given: str) -> str:
    """Return the name or path of a model or a text, with ~ replaced by the user's home; see `some_path`."""
    return str(some_path(given)) if given.startswith("~") else some_text(given)
