"""Find the checkpoint that a run resumes from, and cut its curves and samples to that moment."""

from __future__ import annotations

import logging
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptlab.data.chat.template import ChatTemplate
from gptlab.data.prepared import Prepared
from gptlab.data.text_options import of_train, read_before
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import adapters, checkpoint, description
from gptlab.system.accelerator import device_name
from gptlab.system.errors import UserError, amount
from gptlab.system.terminal import pasteable, shell_quoted
from gptlab.training.settings import Settings

log = logging.getLogger(__name__)


@dataclass
class Start:
    """The checkpoint that a run resumes from."""

    run_dir: Path
    path: Path
    content: dict[str, Any] | None
    """The checkpoint's content; None once it was taken."""

    def __post_init__(self) -> None:
        assert self.content is not None
        self.step = int(self.content["global_step"])
        self.lengths: dict[str, int] = self.content["lengths"]
        self.threads: int | None = self.content.get("machine", {}).get("threads")
        about = self.content.get(description.KEY, {})
        self.base = adapters.described(about[adapters.KEY])[1] if adapters.KEY in about else None
        """What names the model that its adapters belong on; None: it has none."""
        head = about.get("model", {}).get("head") if isinstance(about.get("model"), dict) else None
        self.headed = head is not None
        """Whether its model has a head for another task."""
        self.origin = adapters.origin(about)
        """What names the model of init_from; None: there is none, or an older version did not say."""
        new = (rows for name, rows in self.content.get("state_dict", {}).items() if name.endswith(description.NEW_ROWS))
        self.new_tokens = 0 if self.base else len(next(new, ()))
        """The number of tokens of its model that were new to the run."""

    @property
    def source(self) -> Path | str:
        """What the model is opened by: the checkpoint, or the name of the model that its adapters belong on.

        Raises:
            UserError: that is missing.
        """
        return self.base.found() if self.base else self.path

    def chat_template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Return the chat template that the run has begun with; None: it has none."""
        assert self.content is not None
        chat = description.described_chat(self.content[description.KEY], tokenizer, self.path)
        return chat if isinstance(chat, ChatTemplate) else None

    def threads_of(self, most: int) -> int | None:
        """Return the number of threads of before; None if it is unknown, or here are fewer than it, `most`."""
        return self.threads if self.threads is not None and self.threads <= most else None

    def take(self) -> dict[str, Any]:
        """Return the content and drop this reference, so that the caller can free its memory."""
        assert self.content is not None
        content, self.content = self.content, None
        return content


def starting_point(run_dir: Path) -> Start | None:
    """Return the checkpoint that a run resumes from; None, with a warning, if it has none yet.

    Raises:
        UserError: see `newest_checkpoint`.
    """
    found = newest_checkpoint(run_dir)
    if found is None:
        log.warning("%s has no checkpoint yet: the run starts anew", run_dir)
        return None
    return Start(run_dir, *found)


def check_resumable(start: Start, settings: Settings, prepared: Prepared) -> None:
    """Check that a run can be resumed from this checkpoint, bit for bit.

    Raises:
        UserError: the run has finished, was made by an older version, or had a different text or tokenizer.
    """
    run_dir, content, step = start.run_dir, start.content, start.step
    assert content is not None
    about = content[description.KEY]
    if (made := description.format_version(about, run_dir)) < description.FORMAT:
        raise UserError(
            f"resume={run_dir}: its checkpoint is of gptlab {about['version']} (format {made}), which this "
            f"version opens but does not go on from; begin a new run with its weights: "
            f"{pasteable('init_from', str(run_dir))}"
        )
    most = settings.trainer.max_steps
    if step > most or (step == most and not about["metrics"]):  # without a validation at that step it has not finished
        raise UserError(
            f"resume={run_dir}: the run has made {amount(step, 'step')}: trainer.max_steps={most} must be above that"
        )
    if (run_dir / "summary.json").exists():
        patience = content["callbacks"]["Checkpoints"]["patience"]
        if step >= most:
            raise UserError(
                f"resume={run_dir}: the run has made its {amount(step, 'step')}; add trainer.max_steps=N "
                f"schedule.decay_steps=N to go further, or sample from it: python -m gptlab.generate "
                f"{shell_quoted(str(run_dir))}"
            )
        if patience is not None and patience == settings.trainer.patience:
            raise UserError(
                f"resume={run_dir}: the run has stopped early after {amount(step, 'step')}; "
                f"add trainer.patience=null, or more than {patience}, to go further"
            )
    if about["data_sha256"] != prepared.sha256:
        raise UserError(
            f"resume={run_dir}: the text has changed since (its sha256 is {prepared.sha256[:16]}, the run's is "
            f"{about['data_sha256'][:16]}); give the run's own text as data.path=... or start anew"
            f"{read_before(about['config']['data'], of_train)}"
        )
    if about["tokenizer"] != prepared.tokenizer.to_dict() and not settings.init_from:
        raise UserError(
            f"resume={run_dir}: the tokenizer is not the run's own (tokenizer={prepared.tokenizer.name}, "
            f"{prepared.tokenizer.vocab_size:,} in its vocabulary)"
            + (f"; prepare the text anew: delete {prepared.folder}" if prepared.folder else "")
        )
    if prepared.tokenizer.begin and "begin" not in content:  # of an older version
        begin = prepared.tokenizer.begin_name
        log.warning("until now no text of this run began with %s; from here on each does", begin)
    here = machine_facts()
    if settings.trainer.threads == "auto":  # see `threads.choose_threads`
        here["threads"] = start.threads_of(here["threads"]) or here["threads"]
    for what, value in content["machine"].items():
        if here[what] != value:
            log.warning("%s is %s here and was %s: the same run to rounding, not to the bit", what, here[what], value)


def machine_facts() -> dict[str, Any]:
    """Return the facts of this machine that the last bits of a float depend on."""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    processor = device_name("cuda") if torch.cuda.is_available() else cpu
    return {"torch": str(torch.__version__), "processor": processor, "threads": torch.get_num_threads()}


def appended_files(run_dir: Path) -> list[Path]:
    """Return the files that a run appends to: its curves and samples."""
    return [path for name in ("metrics.csv", "samples.txt", "events.out.*") for path in run_dir.glob(name)]


def newest_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest intact checkpoint of a run and its content; None if the run has no checkpoint yet.

    A checkpoint is also skipped if its curves and samples are incomplete: they were cut to resume from an older one.

    Raises:
        UserError: there are checkpoints, but none is intact.
    """
    folder = run_dir / "checkpoints"
    skipped, without_curves = [], None
    for path in (
        folder / "last.ckpt",
        *(path for _, path in checkpoint.kept_checkpoints(folder)),
        folder / "best.ckpt",
    ):
        if not path.is_file():
            continue
        try:
            content = checkpoint.read_checkpoint(path, mapped=False)
        except UserError as error:
            skipped.append(str(error))
            continue
        short = [name for name, length in content.get("lengths", {}).items() if _size(run_dir / name) < length]
        if not short:
            return _with_warnings(path, content, skipped)
        skipped.append(f"{path} is newer than {' and '.join(short)}, which would lack what came before it")
        without_curves = without_curves or (path, content)
    if without_curves:
        return _with_warnings(*without_curves, skipped)
    if skipped:
        raise UserError("\n".join([*skipped, "no other checkpoint is there: start the run anew"]))
    return None


def _with_warnings(path: Path, content: dict[str, Any], skipped: list[str]) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint, and warn of those that were skipped for it."""
    for message in skipped:
        log.warning("%s", message)
    if skipped:
        log.warning("going on from %s, of step %s", path, content["global_step"])
    return path, content


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def remove_temporary_files(run_dir: Path) -> None:
    """Remove the unfinished files of killed processes; the caller must hold the run's lock."""
    for path in (*run_dir.glob(".*.tmp"), *run_dir.glob("checkpoints/.*.tmp"), *run_dir.glob("checkpoints/*.new")):
        path.unlink()


def cut_curves(run_dir: Path, lengths: dict[str, int]) -> None:
    """Remove from a run's curves and samples all that was written after a checkpoint.

    A resumed run writes these parts again, so that nothing is missing or there twice.

    Args:
        lengths: the length in bytes of each file, by name, when the checkpoint was saved; other files are deleted.
    """
    for path in appended_files(run_dir):
        if path.name in lengths:
            os.truncate(path, min(lengths[path.name], path.stat().st_size))
        else:
            path.unlink()
