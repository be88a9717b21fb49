"""Measure how well a model still goes on with a text while it learns something else."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch

from gptlab.data.batches import Windows
from gptlab.data.tokenizers import Tokenizer
from gptlab.evaluation import eval_data, loss
from gptlab.evaluation.candidates import choose_text, learned_texts, open_candidate, text_base
from gptlab.formats.adapters import BEGUN
from gptlab.formats.open_model import OpenedModel
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
    tokenizer: Tokenizer
    windows: Windows
    part: str
    """Which part of the text it is."""

    def measure(self, model: Model) -> float:
        """Return the loss in nats per token, in fp32.

        Args:
            model: a model in evaluation mode, its adapters merged.
        """
        device = next(model.parameters()).device
        with torch.autocast(device.type, enabled=False):
            found = loss.measure(model, self.ids, self.tokenizer, self.part, self.windows, device)
        return found.values()["nats_per_token"]


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
    return TextLoss(ids, tokenizer, windows, text.part)


def _base(settings: Settings, loaded: Loaded) -> OpenedModel[Model] | None:
    """Open the model of texts that the run goes back to; None: there is none.

    Raises:
        UserError: it is missing, or another than it was; of a text that has a name of its own that does not matter.
    """
    if settings.init_from is None:
        return None
    try:
        base = open_candidate(loaded.origin.found(BEGUN) if loaded.origin else settings.init_from)
        return base if learned_texts(base) else text_base(base)
    except UserError:
        if settings.task.text_loss == BASE:
            raise
        return None
