"""What the tests of data share."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a cache of its own and no network."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": tmp_path / "hf",
        "HF_DATASETS_CACHE": tmp_path / "hf",
    }.items():
        monkeypatch.setenv(name, str(value))
    library = importlib.import_module("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")  # where it was imported before
    library.disable_progress_bars()
    return library
