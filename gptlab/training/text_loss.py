"""Measure how well a model still goes on with a text while it learns something else."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np
import torch

from gptlab.data.batches import Windows
from gptlab.evaluation import eval_data, loss
from gptlab.evaluation.candidates import choose_text, text_base_of
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model
from gptlab.system.errors import UserError
from gptlab.training.loading import Loaded
from gptlab.training.settings import Settings
from gptlab.training.tasks import BASE

log = logging.getLogger(__name__)


class TextLoss(NamedTuple):
    """A text whose loss is measured at each validation, as `evaluate` does."""

    ids: np.ndarray
    """(n,)."""
    windows: Windows

    def measure(self, model: Model) -> float:
        """Return the loss in nats per token, in fp32.

        Args:
            model: a model in evaluation mode, its adapters merged.
        """
        device = next(model.parameters()).device
        with torch.autocast(device.type, enabled=False):
            nats = loss.token_nats(model, self.ids, self.windows, device)
        return math.fsum(nats) / len(nats)


def open_text(settings: Settings, loaded: Loaded) -> TextLoss | None:
    """Return the text that task.text_loss names; None: there is none.

    It is a text, a file or a folder, as of `evaluate --data`; or base, the validation part of the text that the model
    of init_from has learned.

    Raises:
        UserError: there is no such text, or it is too short; or the model of init_from is not there, or brings none.
    """
    if (name := settings.task.text_loss) is None:
        return None
    key, block_size, tokenizer = f"task.text_loss={name}", loaded.data.block_size, loaded.tokenizer
    try:
        base = _base(settings, loaded)
        if name == BASE and (base is None or not base.data):
            raise UserError("the model of init_from brings no text; name a text or a file")
        text = choose_text(None if name == BASE else name, None, [base] if base else [], {}, False, name)
        pieces, lost = eval_data.without_unknown(text.source.pieces(text.part), [tokenizer])
        ids = text.source.encode(pieces, tokenizer, None if lost else text.part)
    except UserError as error:
        raise UserError(f"{key}: {error}. Leave it out, or null, to measure none") from error
    context = min(block_size, base.model.config.block_size) if base else block_size
    windows = Windows.of(context, None, block_size, key)
    log.info("beside: the loss of %s, %s", text.name, windows.protocol(text.part))
    for note in text.notes:
        log.warning("%s: %s", key, note)
    return TextLoss(ids, windows)


def _base(settings: Settings, loaded: Loaded) -> OpenedModel[Model] | None:
    """Open the model of texts that the run goes back to; None: there is none.

    Raises:
        UserError: it is missing, or another than it was; of a text that has a name of its own that does not matter.
    """
    try:
        return text_base_of(settings.init_from, loaded.origin, loaded.node)
    except UserError:
        if settings.task.text_loss == BASE:
            raise
        return None
