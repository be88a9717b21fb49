"""Check the composed config of one run; an error names the key, the value and a way out."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptlab import models
from gptlab.data.config import DataConfig
from gptlab.data.tokenizers import TokenizerConfig
from gptlab.evaluation.ngrams import HIGHEST_ORDER, ngram_order
from gptlab.models import ModelConfig
from gptlab.models.lora import LoRAConfig
from gptlab.runs import compose
from gptlab.runs.schema import build
from gptlab.system.errors import UserError, did_you_mean
from gptlab.training import task_checks, tasks
from gptlab.training.optimizers import OptimConfig
from gptlab.training.schedules import ScheduleConfig
from gptlab.training.tasks import RewardNode, TaskConfig

PRECISIONS = ("fp32", "bf16", "fp16", "bf16_true", "auto")


@dataclass(frozen=True)
class TrainerConfig:
    name: str
    accelerator: str
    devices: Any
    """Devices of this machine: a number, or "auto"."""
    max_steps: int
    val_first: bool
    val_every: int
    log_every: int
    checkpoint_every: int
    checkpoint_minutes: float | None
    keep_checkpoints: int
    nonfinite: str
    diagnose_every: int
    patience: int | None
    sample_prompt: str
    sample_tokens: int
    sample_temperature: float
    threads: Any = "auto"
    """Threads of a CPU, in each process: a number; or auto, as many as pay."""
    strategy: str = "auto"
    ema: float = 0.0
    """Decay per optimizer step of the average of the weights; 0: no average."""
    baseline: str | None = None
    """The name of a table of counts, ngram:1 to ngram:6, to compare the last val/loss with; None: none."""

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "gpu", "mps"):
            raise UserError(f"trainer.accelerator={self.accelerator}: must be one of auto, cpu, gpu, mps")
        if self.strategy not in ("auto", "ddp", "fsdp"):
            raise UserError(f"trainer.strategy={self.strategy}: must be one of auto, ddp, fsdp")
        number = isinstance(self.devices, int) and not isinstance(self.devices, bool)
        if self.devices != "auto" and not (number and self.devices >= 1):
            raise UserError(f"trainer.devices={self.devices}: must be at least 1, or auto")
        if self.threads != "auto" and not (type(self.threads) is int and self.threads >= 1):
            raise UserError(f"trainer.threads={self.threads}: must be at least 1, or auto")
        for name in ("max_steps", "val_every", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)}: must be at least 1")
        for name in ("diagnose_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise UserError(f"trainer.{name}={getattr(self, name)}: must be at least 1, or 0 for never")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise UserError(f"trainer.checkpoint_minutes={self.checkpoint_minutes}: must be above 0, or null for never")
        if self.nonfinite not in ("stop", "skip"):
            raise UserError(f"trainer.nonfinite={self.nonfinite}: must be one of stop, skip")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"trainer.patience={self.patience}: must be at least 1, or null for no early stopping")
        if self.baseline is not None and not ngram_order(self.baseline):
            raise UserError(
                f"trainer.baseline={self.baseline}: must be one of ngram:1 to ngram:{HIGHEST_ORDER}, or null"
            )
        if not 0 <= self.ema < 1:
            raise UserError(f"trainer.ema={self.ema}: must be at least 0 (for no average) and below 1, e.g. 0.999")
        if self.sample_tokens < 0 or not self.sample_temperature >= 0:
            raise UserError("trainer.sample_tokens and trainer.sample_temperature must be at least 0")


@dataclass(frozen=True)
class PrecisionConfig:
    name: str
    matmul: str

    def __post_init__(self) -> None:
        if self.name not in PRECISIONS:
            raise UserError(f"precision.name={self.name}: must be one of {', '.join(PRECISIONS)}")
        if self.matmul not in ("highest", "high", "medium"):
            raise UserError(f"precision.matmul={self.matmul}: must be one of highest, high, medium")


@dataclass(frozen=True)
class CompileConfig:
    name: str
    backend: str | None
    mode: str | None

    def __post_init__(self) -> None:
        modes = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
        if self.mode is not None and self.mode not in modes:
            raise UserError(f"compile.mode={self.mode}: must be one of {', '.join(modes)}, or null")
        if self.backend in (None, "inductor"):
            return  # torch's compiler takes seconds to import
        known = torch.compiler.list_backends(exclude_tags=())
        if self.backend not in known:
            raise UserError(f"compile.backend={self.backend}: must be one of {', '.join(known)}, or null")


@dataclass(frozen=True)
class RecipeConfig:
    """Values recommended for a model size; other groups read them by interpolation."""

    batch_size: int
    micro_batch_size: Any
    max_steps: int
    lr: float
    beta2: float
    weight_decay: float
    warmup_steps: int
    dropout: float
    bias: bool


@dataclass(frozen=True)
class PretrainedConfig:
    """Keys in which a config may change the architecture of init_from; None: unchanged."""

    block_size: int | None
    dropout: float | None
    attention: str | None
    gradient_checkpointing: bool | None


@dataclass(frozen=True)
class AdapterConfig:
    """The config group `lora` as it is typed; see `LoRAConfig`."""

    rank: int | None
    """None, or 0: there are no adapters."""
    alpha: float
    dropout: float
    targets: list[str]
    rslora: bool
    untie: bool


@dataclass(frozen=True)
class Settings:
    """The checked settings of one run; the vocabulary is missing, since the data or `init_from` decides it."""

    name: str
    seed: int
    deterministic: bool
    init_from: str | None
    model: dict[str, Any]
    task: TaskConfig
    reward: RewardNode
    data: DataConfig
    tokenizer: TokenizerConfig | None
    """None: the tokenizer of `init_from`."""
    optim: OptimConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    precision: PrecisionConfig
    compile: CompileConfig
    lora: LoRAConfig | None
    """None: the run trains the model's own weights."""
    resolved: dict[str, Any] = field(repr=False)
    """The whole composed config, with its interpolations resolved."""

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the whole resolved config."""
        return copy.deepcopy(self.resolved)

    def model_config(self, vocab_size: int) -> ModelConfig:
        return models.from_dict({**self.model, "vocab_size": vocab_size})


KEYS = ("name", "seed", "deterministic", "init_from", "resume")
GROUPS = (
    *(
        "recipe",
        "model",
        "task",
        "reward",
        "lora",
        "data",
        "tokenizer",
        "optim",
        "schedule",
        "trainer",
        "precision",
        "compile",
    ),
)


def from_config(config: DictConfig | dict[str, Any]) -> Settings:
    """Check the whole config before a run starts.

    Raises:
        UserError: see `schema.build`.
    """
    try:
        node = config if isinstance(config, DictConfig) else OmegaConf.create(config)
        resolved = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from error
    plain = OmegaConf.create(resolved)
    assert isinstance(resolved, dict)
    assert isinstance(plain, DictConfig)
    for key in map(str, plain):
        if key not in (*KEYS, *GROUPS):
            raise UserError(f"{key}={plain[key]}: there is no such key; {did_you_mean(key, (*KEYS, *GROUPS))}")
    for key in GROUPS:
        if not isinstance(plain.get(key), DictConfig):
            raise UserError(f"{key}: is missing or no group of keys; see python -m gptlab.train --cfg job")
    seed = plain.seed
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 32:
        raise UserError(f"seed={seed}: must be an integer from 0 to {(1 << 32) - 1}")
    if not isinstance(plain.deterministic, bool):
        raise UserError(f"deterministic={plain.deterministic}: must be true or false")
    if not isinstance(plain.name, str) or plain.name in ("", ".", "..") or "/" in plain.name:
        raise UserError(f"name={plain.name}: must be a word that can name a folder")
    source = plain.get("init_from")
    if source is not None and (not isinstance(source, str) or not source):
        raise UserError(
            f"init_from={source}: must name a run directory, a checkpoint or a model of the Hugging Face hub; or null"
        )
    build(RecipeConfig, plain.recipe, "recipe")
    found = Settings(
        name=plain.name,
        seed=seed,
        deterministic=plain.deterministic,
        init_from=source,
        model=_model(plain.model, source),
        trainer=build(TrainerConfig, plain.trainer, "trainer"),
        task=build(tasks.config_class(plain.task.get("name")), plain.task, "task"),
        reward=build(RewardNode, plain.reward, "reward"),
        data=build(DataConfig, plain.data, "data"),
        tokenizer=_tokenizer(plain.tokenizer, source),
        optim=build(OptimConfig, plain.optim, "optim"),
        schedule=build(ScheduleConfig, plain.schedule, "schedule"),
        precision=build(PrecisionConfig, plain.precision, "precision"),
        compile=build(CompileConfig, plain.compile, "compile"),
        lora=_lora(plain.lora),
        resolved={str(key): value for key, value in resolved.items()},
    )
    if found.trainer.ema and found.precision.name == "bf16_true":
        raise UserError(
            f"trainer.ema={found.trainer.ema}: an average in bf16 would be rounded away; use precision=bf16, or "
            f"trainer.ema=0"
        )
    steps, schedule = found.trainer.max_steps, found.schedule
    if schedule.name != "constant" and schedule.min_ratio == 0 and schedule.decay_steps < steps:
        raise UserError(
            f"trainer.max_steps={steps}: with schedule.min_ratio=0 nothing is learned from step "
            f"schedule.decay_steps={schedule.decay_steps} on; add schedule.decay_steps={steps}"
        )
    task_checks.check(found)
    return found


def _lora(node: DictConfig) -> LoRAConfig | None:
    """Check the node `lora`; None: there are no adapters.

    Raises:
        UserError: see `schema.build` and `LoRAConfig`.
    """
    given = build(AdapterConfig, node, "lora")
    fields = asdict(given)
    if given.rank in (0, None):
        LoRAConfig(**fields | {"rank": 1})  # what is wrong is said before it is turned on
        return None
    return LoRAConfig(**fields)


def _model(node: DictConfig, source: str | None) -> dict[str, Any]:
    """Check the model's node; `source` is the value of init_from.

    Raises:
        UserError: see `from_config`.
    """
    fields = OmegaConf.create(node)
    name = fields.pop("name", None)
    if name == compose.PRETRAINED:
        if source is None:
            raise UserError(
                "model=pretrained is the one that init_from names: add init_from=..., or choose another model"
            )
        for key in map(str, fields):
            if key not in compose.FREE:
                raise compose.refuse_key(f"model.{key}={fields[key]}")
        return {"name": name, **asdict(build(PretrainedConfig, fields, "model"))}
    if "vocab_size" in fields:
        raise UserError(f"model.vocab_size={fields.vocab_size}: the tokenizer decides it, leave it out")
    # Only the data knows the vocabulary; any number serves the check.
    checked = build(models.config_class(name), OmegaConf.merge(fields, {"vocab_size": 2}), "model")
    return {k: v for k, v in models.to_dict(checked).items() if k != "vocab_size"}


def _tokenizer(node: DictConfig, source: str | None) -> TokenizerConfig | None:
    if node.get("name") != compose.PRETRAINED:
        return build(TokenizerConfig, node, "tokenizer")
    if source is None:
        raise UserError("tokenizer=pretrained is that of init_from: add init_from=..., or choose e.g. tokenizer=char")
    if node.get("vocab_size") is not None:
        raise UserError(f"tokenizer.vocab_size={node.vocab_size}: tokenizer=pretrained has its own; leave it out")
    return None
