"""Record the environment of a run: versions, device, git commit, data hash and command line."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("gptlab", "torch", "lightning", "hydra-core", "omegaconf", "numpy", "tensorboard")


def environment(device: str, data_sha256: str) -> dict[str, Any]:
    """Return the versions, device, git commit, data hash and command line of this process."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[name] = "not installed"
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": device,
        "git_commit": _git_commit(),
        "data_sha256": data_sha256,
    }


def _git_commit() -> str | None:
    """Return the commit of this code's checkout, with "-dirty" if files differ; None outside of a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
