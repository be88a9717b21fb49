"""The LightningModule: the steps of an objective, its exact means over a split, and a checkpoint's content."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from gptlab import models
from gptlab.data.chat.chat_format import Format
from gptlab.data.tokenizers import Tokenizer
from gptlab.distributed.sharding import gathered_model, total_norm
from gptlab.formats import adapters, checkpoint, description
from gptlab.models import Network
from gptlab.models.gpt import GPT
from gptlab.models.heads import language_model
from gptlab.models.lora import adapter_state
from gptlab.models.weights import SCORE
from gptlab.system.errors import UserError, amount
from gptlab.training.answers import Answers
from gptlab.training.lightning_setup import count_micro_batches, set_attribute
from gptlab.training.objectives.base import Objective, summed
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.optimizers import OptimConfig, build_optimizer
from gptlab.training.schedules import ScheduleConfig, lr_scale
from gptlab.training.text_loss import TextLoss

RUNNING = ("grad_norm", "loss_sum", "loss_count", "skipped")  # state of the curves that a checkpoint keeps


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Return what the optimizer trains; faster than walking the model."""
    return [p for group in optimizer.param_groups for p in group["params"]]


class LMModule(L.LightningModule):
    """Trains `model` by an objective.

    Randomness in a step depends only on the seed and the step, so a resumed run needs no random state.

    Args:
        config: the run's resolved config as a plain dict; saved in checkpoints.
        data_sha256: the hash of the raw text; saved in checkpoints.
        objective: what is minimised, and measured; None: to predict the next token.
        answers: what lets the model answer held-out prompts at each validation; None: nothing to answer.
        text_loss: what measures the loss of another text at each validation; None: there is none.
        fused: whether the optimizer step is one kernel (impossible with fp16's gradient scaling).
        skip: whether steps with nonfinite gradients are skipped; otherwise such a step is the last, see `bad_step`.
        origin: what names the model of init_from, which checkpoints then name; of one that the adapters of `model`
            belong on they hold nothing else. None: there is none.
        chat: the format of the conversations that it learns from; None: it learns from texts.
    """

    def __init__(
        self,
        model: Network,
        tokenizer: Tokenizer,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        config: dict[str, Any],
        data_sha256: str,
        objective: Objective | None = None,
        answers: Answers | None = None,
        fused: bool = True,
        skip: bool = False,
        origin: adapters.Base | None = None,
        chat: Format | None = None,
        text_loss: TextLoss | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective or NextToken(tokenizer)
        self.tokenizer = tokenizer
        self.optim = optim
        self.schedule = schedule
        self.config = config
        self.data_sha256 = data_sha256
        self.answers = answers
        self.text_loss = text_loss
        self.fused = fused
        self.skip = skip
        self.origin = origin
        self.chat = chat
        self.val_metrics: dict[str, float] = {}
        self.val_step = 0
        self.test_metrics: dict[str, float] = {}
        # Not buffers: DDP would overwrite them with the first process's, and bf16_true would round them.
        self.grad_norm = torch.zeros(())
        self.loss_sum = torch.zeros(())  # of the micro-batches since the last log
        self.loss_count = torch.zeros(())
        self.figures: dict[str, Tensor] = {}  # sums and weights of what is logged beside it, (2,) each
        self.skipped = torch.zeros((), dtype=torch.int64)
        """Number of steps that changed nothing because their gradients were not finite."""
        self.bad_step = torch.full((), -1)
        """The first step with nonfinite gradients, counted from 0; from then on the weights stay unchanged."""
        self._sums: list[Tensor] = []

    __setattr__ = set_attribute

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():  # kernels draw their own
            number = batch_idx * self.trainer.world_size + self.trainer.global_rank
            torch.cuda.manual_seed((self.config["seed"] << 32) + number)
        loss, mean, weight, figures = self.objective.loss(self.model, batch, self.trainer)
        if self.skip:
            weight, mean = weight * mean.isfinite(), mean.nan_to_num(0, 0, 0)
        elif not self.fused:  # fp16: gradients may overflow, the loss must not
            self._halt(~mean.isfinite())
        self.loss_sum = self.loss_sum + weight * mean
        self.loss_count = self.loss_count + weight
        for name, (total, count) in figures.items():
            pair = torch.stack((total.nan_to_num(0, 0, 0), count * total.isfinite()))
            self.figures[name] = self.figures[name] + pair if name in self.figures else pair
        return loss

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Clip to the global norm; Lightning's own clipping refuses fused optimizers under autocast."""
        limit = self.optim.grad_clip or float("inf")
        parameters = parameters_of(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.grad_norm = total_norm(gradients)
        if not (self.grad_norm.is_cpu and self.grad_norm < 0.999 * limit):  # there the factor would be 1
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, self.grad_norm)
        if self.fused:  # fp16's gradient scaler sets it itself
            optimizer.found_inf = self._refused()  # type: ignore[attr-defined]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Do what `optimizer.zero_grad` does, without its record for the profiler."""
        for parameter in parameters_of(optimizer):
            parameter.grad = None

    def _refused(self) -> Tensor | None:
        """Return 1 if the step must not change anything, and count it; does not wait for a GPU. None: a usual step."""
        if self.grad_norm.is_cpu and math.isfinite(self.grad_norm) and self.bad_step.item() < 0:
            return None  # the usual case, in a few microseconds
        bad = ~self.grad_norm.isfinite()
        if not self.skip:
            self._halt(bad)
            bad = self.bad_step >= 0
        self.skipped = self.skipped.to(bad.device) + bad
        return bad.float()

    def _halt(self, bad: Tensor) -> None:
        """Record the current step as the first bad one, if `bad` and none was recorded."""
        before = self.bad_step.to(bad.device)
        self.bad_step = torch.where(bad & (before < 0), self.trainer.global_step, before)

    def _reduced(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return sums and weights since the last log over all processes, (2,) each: of the losses and the figures."""
        losses = torch.stack((self.loss_sum.to(self.device), self.loss_count.to(self.device)))
        names = sorted(self.figures)
        sums = torch.stack((losses, *(self.figures[name].to(losses) for name in names)))
        sums = summed(self.trainer, sums)
        return sums[0], dict(zip(names, sums[1:], strict=True))

    def training_metrics(self) -> dict[str, float]:
        """Return the means since the last call, over all processes; nan if every step was skipped."""
        losses, figures = self._reduced()
        self.loss_sum, self.loss_count, self.figures = torch.zeros(()), torch.zeros(()), {}
        sums = {name: pair.tolist() for name, pair in {"loss": losses, **figures}.items()}
        return {f"train/{name}": total / weight if weight else math.nan for name, (total, weight) in sums.items()}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._sums.append(self.objective.measure(self.model, batch))

    test_step = validation_step

    def _evaluation(self, split: str) -> dict[str, float]:
        """Return the metrics of all batches of a split, over all processes."""
        sums = torch.stack(self._sums).cpu().double().sum(0)  # in double: exact over many batches
        self._sums.clear()
        sums = summed(self.trainer, sums).cpu()
        return self.objective.completed(self.objective.metrics(sums, split) | self._beside(split), split)

    def _beside(self, split: str) -> dict[str, float]:
        """Return how right the model's answers to held-out prompts are, and the loss of another text.

        The first process answers and reads.
        """
        if self.answers is None and self.text_loss is None:
            return {}
        found: dict[str, float] = {}
        with gathered_model(language_model(self.model)) as model, self.trainer.precision_plugin.val_step_context():
            if self.answers is not None and self.trainer.is_global_zero:
                found |= self.answers.measure(model, split, self.model)
            if self.text_loss is not None and self.trainer.is_global_zero and split == "val":
                found["val/text_loss"] = self.text_loss.measure(model)
        return self.trainer.strategy.broadcast(found)

    def on_test_epoch_end(self) -> None:
        self.test_metrics = self._evaluation("test")

    def on_validation_epoch_end(self) -> None:
        self.val_metrics = self._evaluation("val")
        self.val_step = self.trainer.global_step
        loss = self.val_metrics["val/loss"]
        if not math.isfinite(loss):
            left_out = f" ({amount(int(self.skipped), 'step')} left out)" if self.skipped else ""
            raise UserError(
                f"val/loss is {loss} at step {self.val_step}{left_out}: the run has diverged; lower "
                f"optim.lr={self.optim.lr:g} or raise schedule.warmup_steps={self.schedule.warmup_steps}"
            )
        self.log("val/loss", loss, logger=False, sync_dist=True)  # for early stopping

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.model, self.optim, models.matrices(self.model), self.fused)
        scheduler = LambdaLR(optimizer, lambda step: lr_scale(step, self.schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_at(self, step: int) -> float:
        """Return the learning rate of optimizer step 0, 1, 2, ..."""
        return self.optim.lr * lr_scale(step, self.schedule)

    def on_save_checkpoint(self, content: dict[str, Any]) -> None:
        step = content["global_step"]
        measured = self.val_metrics if self.val_step == step else {}
        content |= self.described(content["state_dict"], step, measured)
        content["begin"] = list(self.tokenizer.begin)
        content["training"] = {name: getattr(self, name).cpu() for name in RUNNING}
        losses, figures = self._reduced()
        content["training"] |= zip(("loss_sum", "loss_count"), losses.cpu().clone(), strict=True)
        if figures:
            content["training"]["figures"] = {name: pair.cpu().clone() for name, pair in figures.items()}

    def described(self, state: dict[str, Any], step: int, metrics: dict[str, float]) -> dict[str, Any]:
        """Return what a checkpoint holds of the model: its description, and of its state what no base has.

        Args:
            state: the module's state dict.
        """
        about = checkpoint.describe(self.model, self.tokenizer, self.config, self.data_sha256, step, metrics, self.chat)
        if self.origin is not None:
            gpt = language_model(self.model)
            lora = gpt.lora if isinstance(gpt, GPT) else None
            if lora is None:
                about[adapters.ORIGIN] = dataclasses.asdict(self.origin)
            else:
                about[adapters.KEY] = adapters.describe(lora, self.origin)
                own = {f"{description.PREFIX}{name}" for name in (*adapter_state(self.model), SCORE)}
                state = {name: tensor for name, tensor in state.items() if name in own}
        return {description.KEY: about, "state_dict": state}

    def on_load_checkpoint(self, content: dict[str, Any]) -> None:
        for name in RUNNING:
            setattr(self, name, content["training"][name])
        self.figures = content["training"].get("figures", {})
        if self.trainer.global_rank > 0:  # the saved sums cover all processes
            self.loss_sum, self.loss_count = torch.zeros(()), torch.zeros(())
            self.figures = {name: torch.zeros(2) for name in self.figures}
        if adapters.KEY in content[description.KEY]:  # the base has the rest
            content["state_dict"] = {**self.state_dict(), **content["state_dict"]}
        self.val_metrics = content[description.KEY]["metrics"]
        self.val_step = content["global_step"]
        count_micro_batches(content, self.trainer.accumulate_grad_batches)
