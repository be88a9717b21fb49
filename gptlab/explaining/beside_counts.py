"""What a model knows that a table of counts does not: the surprisal of each token, side by side."""

from __future__ import annotations

import numpy as np
import torch

from gptlab.evaluation.eval_data import first_characters, without_unknown
from gptlab.evaluation.loss import Measurement
from gptlab.evaluation.ngrams import NGrams
from gptlab.explaining.surprisal import measure_text
from gptlab.explaining.training_text import TrainingText
from gptlab.formats.opened import OpenedModel
from gptlab.models import Model

MOST_COUNTED = 4_000_000  # characters; six orders of so many tokens take about ten seconds


def measure_counts(
    opened: OpenedModel[Model], ids: np.ndarray, training: TrainingText, order: int
) -> tuple[Measurement, str]:
    """Count n-grams of a model's tokens in the training text, and measure them on a text.

    Args:
        opened: the model.
        ids: the text, (T,).
        training: the training text.
        order: the longest n-gram, see `NGrams`.

    Returns:
        The measurement, and in words what was counted.

    Raises:
        UserError: the training text has not two tokens.
    """
    pieces, _ = without_unknown([*first_characters(training.pieces, MOST_COUNTED)], [opened.tokenizer])
    counted = training.source.encode(pieces, opened.tokenizer)
    table = NGrams(counted, opened.tokenizer.vocab_size, order)
    name = f"ngram:{order}"
    measured = measure_text(OpenedModel(name, table, opened.tokenizer, None), ids, torch.device("cpu"))
    return measured, f"{name}, counted on {len(counted):,} tokens"
