"""What the tests share: a small text, composing settings as the command line does, and one small trained run."""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import json
import logging
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra._internal.config_repository import ConfigRepository
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from gptlab.training import lightning_setup

lightning_setup.import_lightning()

from gptlab.runs.compose import open_conf  # noqa: E402
from gptlab.system import accelerator  # noqa: E402
from gptlab.training.fit import fit  # noqa: E402
from gptlab.training.settings import Settings, from_config  # noqa: E402

torch.set_num_threads(1)  # for models this small more threads are slower
# As in a terminal: what a shell's "&" and nohup have ignored here would be ignored by our commands, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ROOT = Path(__file__).resolve().parent.parent
# Distinct primes where the model allows it, so that a swapped axis fails.
TINY = (
    "model.n_layer=2",
    "model.n_head=3",
    "model.n_embd=33",
    "model.block_size=17",
    "data.batch_size=6",
    "data=text",
    "trainer=cpu",
    "trainer.max_steps=7",
    "trainer.val_every=3",
    "trainer.log_every=1",
    "trainer.sample_tokens=19",
    "schedule.warmup_steps=2",
)
# What a run that goes on must not stumble over.
HARD = ("model.dropout=0.2", "data.micro_batch_size=2", "trainer.patience=50", "trainer.diagnose_every=2")


def pytest_collection_finish() -> None:
    """Collect garbage less often, and never look at the libraries and the tests, which stay until the end."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope="session", autouse=True)
def conf_is_parsed_once() -> Iterator[None]:
    """Hydra parses the files of conf/ anew for each composition, which is a third of its time."""
    parse, parsed = ConfigRepository.load_config, {}

    def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        key = (config_path, *((source.scheme(), source.path) for source in self.get_sources()))
        if key not in parsed:
            parsed[key] = parse(self, config_path)
        return copy.deepcopy(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", load_config)
        yield


@pytest.fixture(scope="session", autouse=True)
def peak_is_measured_once() -> Iterator[None]:
    """A run measures for 0.15 seconds how fast the machine can be; of all runs here the first does so for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerator, "measured_peak_flops", functools.cache(accelerator.measured_peak_flops))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """What is written here need not survive one, and each run would wait for the disk 30 times; in children it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 sentences over a small vocabulary: enough structure to learn something in a few steps."""
    draw = random.Random(0)
    words = ["the", "a", "cat", "dog", "king", "queen", "sees", "loves", "fears", "old", "young", "night", "day"]
    lines = [" ".join(draw.choices(words, k=draw.randint(3, 7))) + ".\n" for _ in range(2000)]
    path = tmp_path_factory.mktemp("text") / "my text.txt"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def compose(text_file: Path, cache_dir: Path) -> Any:
    """compose("model=gpt1m", ...) -> Settings, with the small text and a cache of the tests' own."""

    @functools.cache  # settings are frozen
    def compose(*overrides: str) -> Settings:
        places = (f"data.path='{text_file}'", f"data.cache_dir={cache_dir}")
        with open_conf():
            cfg = hydra.compose("train", [*places, *overrides])
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "sweep"])
        return from_config(cfg)

    return compose


@pytest.fixture(scope="session")
def run(compose: Any) -> Any:
    """run(run_dir, *overrides) trains the tiny model in `run_dir` and returns its summary."""

    def run(run_dir: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
        return fit(compose(*TINY, *overrides), run_dir, resume)

    return run


@pytest.fixture(scope="session")
def trained(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny run; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    run(run_dir, "model.dropout=0.1")
    return run_dir


@pytest.fixture(scope="session")
def untouched(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished hard run that nobody stopped; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "untouched"
    run(run_dir, *HARD)
    return run_dir


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Any]:
    """command("train", "model=...") is `python -m gptlab.train model=...` in an empty folder.

    In this process, since importing torch and Lightning takes longer than the tests.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    monkeypatch.delenv("GPTLAB_DATA", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def command(verb: str, *arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", [f"gptlab.{verb}", *arguments])
        code: Any = 0
        try:
            importlib.import_module(f"gptlab.{verb}").main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return Result(1, out, f"{err}{code}\n") if isinstance(code, str) else Result(code, out, err)

    yield command
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level  # Hydra has put its own in their place


@pytest.fixture
def evaluate(command: Any) -> Any:
    """evaluate(...) runs the command, which must succeed, and returns the JSON object on standard output."""

    def evaluate(*arguments: Any) -> dict[str, Any]:
        result: Result = command("evaluate", *map(str, arguments), "--json")
        assert (result.returncode, result.stderr) == (0, "")
        return json.loads(result.stdout)

    return evaluate


class Bell:
    """A named pipe into which processes that were started write when they are ready."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.handle = os.open(path, os.O_RDWR)  # to write, too: a pipe with no writer has ended

    def heard(self, count: int) -> str:
        """Wait for so many characters; fails after a minute."""
        text = b""
        while len(text) < count:
            assert select.select([self.handle], [], [], 60)[0], text
            text += os.read(self.handle, count - len(text))
        return text.decode()


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    """The bell `tmp_path / "bell"`."""
    bell = Bell(tmp_path / "bell")
    yield bell
    os.close(bell.handle)


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """shell("-m", "gptlab.train", ...) starts Python as a process of its own in an empty folder."""

    def shell(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, *arguments], cwd=tmp_path, env=env, **(pipes | options))

    return shell


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium, for modules that import tests.browser."""
    from tests.browser import CHROMIUM, sync_api

    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets, from GPTLAB_DATA."""
    folder = os.environ.get("GPTLAB_DATA")
    if not folder or not (Path(folder) / "tinyshakespeare.txt").is_file():
        pytest.skip("GPTLAB_DATA names no folder with tinyshakespeare.txt")
    return Path(folder)
