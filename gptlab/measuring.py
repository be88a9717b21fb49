"""What is measured of a run: our own training, as a user has it, a bare loop over the same parts, and generation.

Each is a process that takes turns with others, see `turns`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import PassThroughProfiler

from gptlab import devices, fit, models
from gptlab.config import Settings
from gptlab.data.batches import Share, TrainBatches
from gptlab.data.shards import id_type, shard
from gptlab.datamodule import LMDataModule
from gptlab.devices import device_type
from gptlab.generation.context import Context
from gptlab.generation.decoding import generate
from gptlab.generation.sampling import Sampling
from gptlab.module import LMModule
from gptlab.optim import lr_scale
from gptlab.system import accelerator
from gptlab.turns import Stopwatch, Turn, about_here, make_steps, memory, wait_for

PARTS = ("loader", "forward", "backward", "optimizer", "logging", "lightning")
OPTIM = ("lr", "weight_decay", "beta1", "beta2", "grad_clip")  # what the plain loop takes of a run's optimizer
ENDLESS = 1 << 40  # steps


class Shares(PassThroughProfiler):
    """How long each part of a step takes, while `begin` has been called and not yet `end`.

    Lightning tells a profiler when it begins and ends any action, one within another; time counts for the innermost.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.seconds: dict[str, float] | None = None
        self._within: list[str] = []
        self._since = 0.0

    def begin(self) -> None:
        self.seconds, self._within = defaultdict(float), ["lightning"]
        wait_for(self.device)
        self._since = time.perf_counter()

    def end(self) -> dict[str, float]:
        """Shares of all, by PARTS."""
        assert self.seconds is not None
        self._count()
        seconds, self.seconds = self.seconds, None
        whole = sum(seconds[part] for part in PARTS)
        return {part: seconds[part] / whole for part in PARTS}

    def _count(self) -> None:
        assert self.seconds is not None
        wait_for(self.device)
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def start(self, action_name: str) -> None:
        if self.seconds is not None:
            self._count()
            self._within.append(part(action_name) or self._within[-1])

    def stop(self, action_name: str) -> None:
        if self.seconds is None or len(self._within) == 1:  # it has begun before we did
            return
        self._count()
        self._within.pop()
        if action_name.endswith(".configure_gradient_clipping"):  # after which the optimizer's own work follows
            self._within[-1] = "optimizer"


def part(action: str) -> str | None:
    """Of PARTS, or "turns", which is ours; None: that of the action within which it is.

    Logging is all that the run's callbacks do: curves and loggers, the progress bar, looking whether to save.
    """
    owner, _, rest = action.partition("]")
    hook = rest.rpartition(".")[2]
    if owner == "[Callback":
        return "turns" if rest.startswith(Turns.__qualname__) else "logging"
    if hook in ("train_dataloader_next", "batch_to_device"):
        return "loader"
    if hook in ("configure_gradient_clipping", "optimizer_zero_grad"):
        return "optimizer"
    return {"training_step": "forward", "backward": "backward"}.get(hook) if owner == "[Strategy" else None


class Turns(L.Callback):
    """Lets a run make so many steps whenever it is its turn, and sends their times; it does not end by itself.

    A step is from the end of a step's callbacks to that of the next one's. Validations and samples are left out.

    Args:
        turn: None in processes that are not the first.
    """

    def __init__(self, settings: Settings, turn: Turn | None) -> None:
        self.settings = settings
        self.turn = turn
        self.order: dict[str, Any] | None = None
        self.left = self.step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.device = trainer.strategy.root_device
        trainer.profiler = self.shares = Shares(self.device)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if self.order is not None:  # the run has begun again, with smaller micro-batches
            self._begin(self.order)
            return
        self._tell(trainer, **self._about(trainer, pl_module))
        self._next(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of an accumulation
        self.step = trainer.global_step
        self.watch.mark()
        self.left -= 1
        if self.left == 0:
            assert self.order is not None
            answer = {"shares": self.shares.end()} if self.order.get("shares") else self.watch.read()
            self._tell(trainer, **answer)
            self._next(trainer)

    def _begin(self, order: dict[str, Any]) -> None:
        self.order, self.left = order, order["steps"]
        self.watch = Stopwatch(self.device)
        if order.get("shares"):
            self.shares.begin()

    def _next(self, trainer: L.Trainer) -> None:
        """Wait for the next order to make steps.

        Raises:
            SystemExit: there are no more.
        """
        while True:
            order = trainer.strategy.broadcast(self.turn.hear() if self.turn else None)
            if order is None:
                raise SystemExit(0)
            if "steps" in order:
                self._begin(order)
                return
            precision, processes = devices.precision(self.settings).name, trainer.world_size
            # After the memory, which it needs some of; all processes at once, as in a step.
            answer: dict[str, Any] = {"memory": self._memory(trainer)}
            peaks = [accelerator.peak_flops(self.device, precision, measured=True) for _ in range(5)]
            answer["measured_peak_flops"] = max(peaks) * processes
            listed = accelerator.listed_peak_flops(self.device)
            answer["listed_peak_flops"] = listed and listed * processes
            self._tell(trainer, **answer)

    def _memory(self, trainer: L.Trainer) -> int | None:
        """That of all processes."""
        here = memory(self.device)
        if here is None or trainer.world_size == 1:
            return here
        whole = trainer.strategy.reduce(torch.tensor(here, device=self.device), reduce_op="sum")
        assert isinstance(whole, torch.Tensor)
        return int(whole)

    def _about(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        data, s = trainer.datamodule, self.settings  # type: ignore[attr-defined]
        assert isinstance(module, LMModule)
        assert isinstance(data, LMDataModule)
        on_gpu = self.device.type == "cuda"
        here = about_here(self.device) | {"memory_before": self._memory(trainer), "processes": trainer.world_size}
        return here | {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else self.device.type,
            "precision": devices.precision(s).name,
            "data": data.prepared.name,
            "data_sha256": data.prepared.sha256,
            "parameters": module.model.num_parameters(),
            "tokens_per_step": s.data.batch_size * data.block_size,
            "flops_per_token": module.model.flops_per_token(),
            "plain": {
                "model": models.to_dict(module.model.config),
                "ids": str(shard(data.prepared.folder, "train", 0)),
                "id_type": id_type(module.tokenizer.vocab_size).__name__,
                "batch_size": s.data.batch_size,
                # What `auto` chooses is ours: a plain loop takes the batch whole, unless a number is given.
                "accumulation": 1 if s.data.micro_batch_size == "auto" else data.config.accumulation(1),
                "optim": {field: getattr(s.optim, field) for field in OPTIM} | {"lr": s.optim.adam_lr or s.optim.lr},
                "schedule": asdict(s.schedule),
                "seed": s.seed,
                "device": str(self.device),
            },
        }

    def _tell(self, trainer: L.Trainer, **answer: Any) -> None:
        if self.turn:
            self.turn.tell(**answer)


def train(settings: Settings, config: dict[str, Any], run_dir: Path, turn: Turn | None) -> None:
    """Train as a user's run does, steps at a time; see `fit.fit`, which raises what this does."""
    others: dict[str, Any] = {
        "val_first": False,
        "val_every": ENDLESS,
        "checkpoint_minutes": None,
        "sample_tokens": 0,
        "patience": None,
    }
    trainer = replace(settings.trainer, max_steps=ENDLESS, **others)
    fit.fit(replace(settings, trainer=trainer), config, run_dir, callbacks=[Turns(settings, turn)])


def bare(settings: Settings, config: dict[str, Any], turn: Turn) -> None:
    module, step = bare_step(settings, config)
    make_steps(turn, step, module.device)


def bare_step(settings: Settings, config: dict[str, Any]) -> tuple[LMModule, Callable[[], None]]:
    """The same model, compiled alike, with the same optimizer and batches, and what makes a step in plain Python."""
    settings = fit.begun(settings, settings.data.batch_size)
    precision, kind = settings.precision.name, device_type(settings)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    data, model, tokenizer, config = fit.load(settings, config)
    module = fit.assemble(settings, config, data, model, tokenizer)
    module.to(device, torch.bfloat16 if precision == "bf16_true" else None)
    autocast = torch.autocast(kind, torch.bfloat16) if precision == "bf16" else nullcontext()
    optimizer = module.configure_optimizers()["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    accumulation = data.config.accumulation(1)
    batches = iter(
        TrainBatches(
            data.prepared.ids("train"),
            seed=settings.seed,
            batch_size=settings.data.batch_size,
            block_size=data.block_size,
            share=Share(0, 1, accumulation),
            device=device,
            distinct=settings.data.overfit_batches,
            order=settings.data.order,
        )
    )
    number = 0

    def step() -> None:
        nonlocal number
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_scale(number, settings.schedule)
        for _ in range(accumulation):
            idx, targets, noise = next(batches)
            with autocast:
                loss = module.model_loss(module.model, idx, targets, "mean", noise) / accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.optim.grad_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        if number % settings.trainer.log_every == 0:
            print(f"step {number}: loss {loss.item() * accumulation:.4f}")

    return module, step


def sample(settings: Settings, config: dict[str, Any], turn: Turn) -> None:
    """Answer orders of `batch` texts with `prompt` tokens each, to which `steps` are added."""
    precision, kind = devices.precision(settings).name, device_type(settings)
    device = torch.device(kind)
    _, model, tokenizer, config = fit.load(settings, config)
    L.seed_everything(settings.seed, verbose=False)
    torch.set_float32_matmul_precision(settings.precision.matmul)
    model = model or models.build(settings.model_config(tokenizer.vocab_size))
    model = model.eval().to(device, torch.float32 if precision == "fp32" else torch.bfloat16)
    turn.tell(
        **about_here(device),
        device=torch.cuda.get_device_name() if kind == "cuda" else kind,
        precision=precision,
        parameters=model.num_parameters(),
        block_size=model.config.block_size,
        plain={"model": models.to_dict(model.config), "device": str(device)},
    )
    sampling, contexts = Sampling(temperature=0.8, top_k=200), dict[int, Context]()
    while (order := turn.hear()) is not None:
        B, count = order["batch"], order["steps"]
        prompts = torch.randint(tokenizer.vocab_size, (B, order["prompt"])).tolist()
        context = contexts.get(B)
        if context is None or context.cache is None:  # kept, since it is what a compiled pass was compiled for
            context = contexts[B] = Context(model, prompts, count, backend=settings.compile.backend)
        else:
            context.take_back(len(context.rows[0]))
            for row, prompt in zip(context.rows, prompts, strict=True):
                row.extend(prompt)
        generators = [torch.Generator().manual_seed(settings.seed + row) for row in range(B)]
        watch = Stopwatch(torch.device("cpu"))  # where tokens are drawn, after the device has been waited for
        for _ in generate(context, count, sampling, generators):
            watch.mark()
        turn.tell(**watch.read(), tokens=count, memory=memory(device))
