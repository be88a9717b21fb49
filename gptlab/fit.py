"""One run, from checked settings to its summary: Lightning's Trainer with our module, data, callbacks and loggers."""

from __future__ import annotations

import errno
import gc
import logging
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.memory import is_oom_error
from tqdm.contrib.logging import logging_redirect_tqdm

from gptlab import devices, init_from, models
from gptlab.averaging import Averaging
from gptlab.callbacks import Curves, Progress, Samples
from gptlab.config import PRECISIONS, Settings, to_yaml
from gptlab.data.tokenizers import Tokenizer
from gptlab.datamodule import LMDataModule
from gptlab.devices import device_type, devices_here
from gptlab.diagnostics import Diagnostics
from gptlab.distributed import processes, sharding, strategies
from gptlab.hooks import NoProfiler, spare
from gptlab.loggers import CSVLogger, TensorBoard, one_report
from gptlab.models import Model
from gptlab.module import LMModule
from gptlab.optim import describe_groups, parameter_groups
from gptlab.resuming import check_resumable, clear, cut, newest
from gptlab.runs import directory, environment, identity
from gptlab.saving import AtomicCheckpointIO, Checkpoints, Lengths, Patience
from gptlab.system import accelerator, machine
from gptlab.system.errors import UserError
from gptlab.system.files import sealed, write_atomically, write_json, writing

log = logging.getLogger(__name__)

# Keys that are no columns of the HParams tab: they decide nothing that runs are compared by, or stand twice.
NOT_COMPARED = (
    *("name", "resume", "recipe.", *identity.PLACES, "data.val_batch_size"),
    *("trainer.sample_", "trainer.log_every", "trainer.diagnose_every", "trainer.checkpoint_"),
    "trainer.keep_checkpoints",
)


def fit(
    settings: Settings,
    config: dict[str, Any],
    run_dir: Path,
    resume: bool = False,
    callbacks: Sequence[L.Callback] = (),
) -> dict[str, Any]:
    """Train, or go on training, in `run_dir`; returns the summary that is written there last.

    Args:
        config: the resolved config that `settings` was made of; kept in config.yaml and in the checkpoints.
        resume: go on from the run's newest checkpoint, or anew where there is none yet.
        callbacks: beside the run's own, after them.

    Raises:
        UserError: anything that can be refused before the first step, a disk that cannot be written, a step whose
            gradients are not finite, too little memory.
        SystemExit: stopped by a signal, after the step was finished and saved.
    """
    world_size = devices_here(settings) * processes.machines()
    share = settings.data.batch_size // world_size
    auto = settings.data.micro_batch_size == "auto"
    if auto and world_size > 1 and device_type(settings) != "cpu":
        raise UserError(f"data.micro_batch_size=auto is for one process, and there are {world_size}: give a number")
    settings = begun(settings, share)
    sizes = [settings.data.micro_batch_size]
    while True:
        micro = sizes[-1]
        at_once = micro or share
        one = replace(settings, data=replace(settings.data, micro_batch_size=micro))
        try:
            return _fit(one, config, run_dir, resume, callbacks)
        except (RuntimeError, MemoryError) as error:
            if not (is_oom_error(error) or isinstance(error, MemoryError)):
                raise
            smaller = [size for size in range(1, at_once) if share % size == 0 and 2 * size <= at_once]
            if not (auto and smaller and world_size == 1):
                other = "" if auto else ", or auto"
                way_out = f"data.micro_batch_size={smaller[-1]}{other}" if smaller else "a smaller model.block_size"
                raise UserError(
                    f"out of memory with {at_once} sequences at once: try {way_out}, "
                    f"model.gradient_checkpointing=true, or data.val_batch_size=1 if it was in a validation"
                ) from error
            sizes.append(smaller[-1])
        # Out of the handler, whose traceback holds on to the model; the checkpoint serves any number.
        log.warning("out of memory with %d sequences at once: going on with %d, accumulated", *sizes[-2:])
        resume = resume or (run_dir / "config.yaml").exists()
        gc.collect()
        torch.cuda.empty_cache()


def begun(settings: Settings, share: int) -> Settings:
    """What this machine begins with where the precision or the micro-batches are `auto`; on a CPU memory is now kept.

    Args:
        share: a process's part of the batch.
    """
    micro = settings.data.micro_batch_size
    if micro == "auto":
        micro = share
    if device_type(settings) == "cpu":
        machine.keep_memory()
        if settings.data.micro_batch_size == "auto" and share:
            micro = machine.cached_rows(share, settings.model.get("block_size") or 1024)
    data = replace(settings.data, micro_batch_size=micro)
    return replace(settings, precision=devices.precision(settings), data=data)


def load(
    settings: Settings, config: dict[str, Any], last: Path | None = None
) -> tuple[LMDataModule, Model | None, Tokenizer, dict[str, Any]]:
    """The data of a run, prepared; the model where it is there already; the tokenizer; and the config that both make.

    Args:
        last: the checkpoint that the run goes on from.

    Raises:
        UserError: the text, or what init_from names, cannot be had, or they do not go together.
    """
    model: Model | None = None
    given: Tokenizer | None = None
    if settings.init_from:  # which a run that goes on needs no more
        model, given = init_from.load(last or settings.init_from, settings.model, settings.data.folder("dir"))
        config = {**config, "model": init_from.node(model)}
    how = settings.tokenizer or given
    assert how is not None  # `settings` sees to that
    data = LMDataModule(settings.data, how, config["model"]["block_size"], settings.seed)
    data.prepare_data()
    if given:
        init_from.check_tokenizer(data.prepared.tokenizer, given)
    config = {**config, "data": {**config["data"], "name": data.prepared.name}}  # what "auto" has chosen
    return data, model, given or data.prepared.tokenizer, config


def assemble(
    settings: Settings,
    config: dict[str, Any],
    data: LMDataModule,
    model: Model | None,
    tokenizer: Tokenizer,
    in_blocks: bool = False,
) -> LMModule:
    """The module of a run, its model compiled where that is asked for; seeds torch.

    Args:
        config, data, model, tokenizer: as `load` returns them; a model that is not there is built.
        in_blocks: compile the model's blocks one by one.
    """
    L.seed_everything(settings.seed, verbose=False)
    torch.set_float32_matmul_precision(settings.precision.matmul)
    model = model or models.build(settings.model_config(tokenizer.vocab_size))
    compile: dict[str, Any] | None = None
    if settings.compile.backend is not None:
        # Shapes are fixed: one graph for training, one for validation.
        compile = {"backend": settings.compile.backend, "mode": settings.compile.mode, "dynamic": False}
        if in_blocks:
            sharding.compile_blocks(model, **compile)
            compile = None
    fused = settings.precision.name != "fp16"  # Lightning does not unscale gradients for a fused optimizer
    skip = settings.trainer.nonfinite == "skip"
    sha256 = data.prepared.sha256
    return LMModule(model, tokenizer, settings.optim, settings.schedule, config, sha256, compile, fused, skip)


def _fit(
    settings: Settings, config: dict[str, Any], run_dir: Path, resume: bool, more: Sequence[L.Callback]
) -> dict[str, Any]:
    start = time.perf_counter()
    rank = getattr(rank_zero_only, "rank", 0)
    if rank != 0:
        logging.disable(logging.WARNING)  # one process speaks for all
    kind = device_type(settings)
    found = newest(run_dir) if resume else None
    last, content = found or (None, None)
    data, given, tokenizer, config = load(settings, config, last)
    prepared = data.prepared
    processes_here = devices_here(settings)
    world_size = processes_here * processes.machines()
    strategy = strategies.build(settings.trainer.strategy, world_size)
    accumulation = data.config.accumulation(world_size)
    devices.check_graphs(settings, kind, accumulation)

    if content is not None:
        check_resumable(run_dir, content, settings, prepared)
    elif resume:
        log.warning("%s has no checkpoint yet: the run starts anew", run_dir)
    lengths: dict[str, int] = content["lengths"] if content is not None else {}

    in_blocks = isinstance(strategy, strategies.FullySharded)
    module = assemble(settings, config, data, given, tokenizer, in_blocks)
    model = module.model
    groups = parameter_groups(model, settings.optim, models.matrices(model))

    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    log.info("run directory: %s", os.path.relpath(run_dir))
    log.info(
        "%s on %s: %s parameters, %s of %s",
        settings.name,
        f"{world_size} x {name} ({settings.trainer.strategy.replace('auto', 'ddp')})" if world_size > 1 else name,
        f"{model.num_parameters():,}",
        f"{len(prepared.ids('train')):,} training and {len(prepared.ids('val')):,} validation tokens",
        f"{prepared.name} (tokenizer={tokenizer.name}, {tokenizer.vocab_size:,} in the vocabulary)",
    )
    if content is not None:
        log.info("going on after step %d", content["global_step"])
    log.info("%s: %s", settings.optim.name, describe_groups(groups))
    if rank == 0:
        with writing(run_dir):
            (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
            (run_dir / "summary.json").unlink(missing_ok=True)  # until this run, too, has finished
            clear(run_dir)
            cut(run_dir, lengths)
        write_atomically(run_dir / "config.yaml", lambda file: file.write(sealed(to_yaml(config)).encode()))
        if content is None:
            write_json(run_dir / "environment.json", environment.environment(name, prepared.sha256))

    tokens_per_step = settings.data.batch_size * data.block_size
    peak = accelerator.peak_flops(torch.device(kind), settings.precision.name) * world_size
    hparams = {key: value for key, value in identity.flatten(config).items() if not key.startswith(NOT_COMPARED)}
    hparams["parameters"] = model.num_parameters()
    board = TensorBoard(run_dir)
    curves = Curves(settings.trainer.log_every, tokens_per_step, model.flops_per_token(), peak, hparams)
    keeper = Checkpoints(
        run_dir / "checkpoints",
        settings.trainer.val_every,
        every=settings.trainer.checkpoint_every,
        minutes=settings.trainer.checkpoint_minutes,
        keep=settings.trainer.keep_checkpoints,
        points=settings.trainer.log_every,
        patience=settings.trainer.patience,
        whole=last is not None and last.name == "last.ckpt",
    )
    samples = Samples(
        run_dir / "samples.txt",
        settings.trainer.sample_prompt,
        settings.trainer.sample_tokens,
        settings.trainer.sample_temperature,
        settings.seed,
    )
    progress = Progress(curves)
    callbacks: list[L.Callback] = [curves, samples, keeper, progress, Lengths(run_dir), Averaging(settings.trainer.ema)]
    if settings.trainer.diagnose_every:
        callbacks.append(Diagnostics(settings.trainer.diagnose_every, prepared.ids("val"), data.block_size, board))
    if settings.trainer.patience is not None:
        callbacks.append(Patience("val/loss", patience=settings.trainer.patience))
    callbacks += more

    arguments: dict[str, Any] = {
        "accelerator": settings.trainer.accelerator,
        "devices": processes_here,
        "num_nodes": processes.machines(),
        "strategy": strategy,
        "precision": PRECISIONS[settings.precision.name],
        "max_steps": settings.trainer.max_steps,
        "max_epochs": -1,
        "accumulate_grad_batches": accumulation,
        "val_check_interval": settings.trainer.val_every * accumulation,  # counted in micro-batches
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": -1 if settings.trainer.val_first else 0,  # the whole split, or nothing
        "logger": [board, CSVLogger(run_dir / "metrics.csv")],
        "callbacks": callbacks,
        "profiler": NoProfiler(),
        "plugins": [AtomicCheckpointIO(content), strategies.environment()],
        "deterministic": settings.deterministic,
        "default_root_dir": run_dir,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "inference_mode": False,  # no_grad: a compiled model is then compiled once less
    }
    found = content = None  # its memory is the Trainer's from now on
    trainer = L.Trainer(**arguments)
    del arguments
    spare(trainer, module)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings(), one_report(), logging_redirect_tqdm():  # messages above the bar, not through it
        # Our loaders are plain iterables: Lightning's advice on workers and on resumable loaders is not for them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Early stopping and diagnostics may be turned off when a run goes on.
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's use of torch's pytrees
        try:
            processes.begin(run_dir)
            trainer.fit(module, datamodule=data, ckpt_path=last)
            if "test" in prepared.counts:
                trainer.test(module, datamodule=data, verbose=False)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # before our handlers stood; Lightning exits with 1
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            strategies.end_children(trainer)
            refused = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
            if isinstance(error, OSError) and error.errno in refused:
                with writing(run_dir):
                    raise
            raise
        finally:
            torch.use_deterministic_algorithms(False)  # which Lightning leaves on

    seconds, tokens = curves.train_seconds, trainer.global_step * tokens_per_step
    flops = tokens * model.flops_per_token()
    summary = {
        "format": directory.SUMMARY_FORMAT,
        "status": "stopped_early" if trainer.global_step < settings.trainer.max_steps else "finished",
        **module.val_metrics,
        **module.test_metrics,
        "best_val_loss": keeper.best_val_loss,
        "best_step": keeper.best_step,
        "train/loss": curves.last["train/loss"],
        "steps": trainer.global_step,
        "skipped_steps": int(module.skipped),
        "tokens": tokens,
        "parameters": model.num_parameters(),
        "flops": flops,
        "train_seconds": seconds,
        "total_seconds": time.perf_counter() - start,
        "tokens_per_sec": tokens / seconds,
        "mfu": flops / seconds / peak if flops else None,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if kind == "cuda" else machine.peak_memory_bytes(),
        "device": name,
        "devices": world_size,
        "precision": settings.precision.name,
        "compile": settings.compile.name,
        "seed": settings.seed,
        "data": {
            "name": prepared.name,
            "sha256": prepared.sha256,
            "tokenizer": tokenizer.name,
            "vocab_size": tokenizer.vocab_size,
        },
        "config_hash": identity.config_hash(config, prepared.sha256),
        "run_dir": str(run_dir),
    }
    if rank == 0:
        write_json(run_dir / "summary.json", summary)
    return summary
