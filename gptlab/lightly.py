"""Lightning without what it would bring along: half of the seconds that its import takes, and its advertisements.

Only light imports stand up here.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# torchmetrics, which Lightning imports, takes these whole where it finds them, for plots and metrics not used here.
UNUSED = ("scipy", "matplotlib", "transformers", "torchvision")


def import_lightning() -> None:
    """To be called before anything else imports it; its messages go through Hydra's logging, once each."""
    from unittest.mock import patch

    from lightning_utilities.core import imports

    with patch.multiple(imports, create=True, _version=version_if_used, package_available=available_and_used):
        import torchmetrics  # noqa: F401
    import lightning  # noqa: F401

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def version_if_used(package: str) -> str:
    if package in UNUSED:
        raise PackageNotFoundError(package)
    return version(package)


def available_and_used(package: str) -> bool:
    return package not in UNUSED and find_spec(package) is not None
