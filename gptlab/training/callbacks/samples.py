"""Draw samples from the model after each validation."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import torch

from gptlab.data.tokenizers import Tokenizer
from gptlab.distributed.sharding import gathered_model
from gptlab.generation.context import Context
from gptlab.generation.decoding import generate, prompt_ids
from gptlab.generation.sampling import Sampling
from gptlab.models import Model
from gptlab.system.errors import quoted
from gptlab.system.files import explain_write_errors
from gptlab.system.terminal import harmless
from gptlab.training.loggers import TensorBoard
from gptlab.training.module import LMModule

log = logging.getLogger(__name__)


class Samples(L.Callback):
    """Lets the model continue `prompt` after each validation; writes to samples.txt, TensorBoard and the log.

    A sample is a function of (seed, step): it neither changes nor depends on the random state of training.

    Args:
        path: where samples.txt is.
        tokens: tokens to generate; 0: no samples.
    """

    def __init__(self, path: Path, prompt: str, tokens: int, temperature: float, seed: int) -> None:
        self.path = path
        self.prompt = prompt
        self.tokens = tokens
        self.sampling = Sampling(temperature=temperature)
        self.seed = seed

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LMModule)
        unknown = pl_module.tokenizer.unknown(self.prompt)
        if unknown and self.prompt != "\n":  # the default, which nobody asked for
            log.warning(
                "trainer.sample_prompt has characters that the training text lacks, left out: %s", quoted(unknown)
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.tokens == 0:
            return
        assert isinstance(pl_module, LMModule)
        with gathered_model(pl_module.model) as model:
            if trainer.is_global_zero:
                self._draw(trainer, model, pl_module.tokenizer)

    def _draw(self, trainer: L.Trainer, model: Model, tokenizer: Tokenizer) -> None:
        step = trainer.global_step
        ids = prompt_ids(tokenizer, self.prompt)
        context = Context(model, [ids], self.tokens)
        generator = torch.Generator().manual_seed(self.seed + step)
        with trainer.precision_plugin.val_step_context():
            ids += [int(tokens) for tokens, _ in generate(context, self.tokens, self.sampling, [generator])]
        text = harmless(tokenizer.decode(ids))
        with explain_write_errors(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.experiment.add_text("sample", "    " + text.replace("\n", "\n    "), step)
        log.info("a sample at step %d:\n%s\n", step, text.strip("\n"))
