"""The commands as a user types them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import signal
import struct
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gptlab.system.errors import UserError
from tests.conftest import TINY, Result
from tests.reports.pages.reading import read_page

RUN = ("data=text", "data.cache_dir=cache", *TINY)


def assert_refused(result: Result, *words: str) -> None:
    """One message, exit code 1, no traceback."""
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_train_then_generate_then_resume(command: Any, text_file: Path, tmp_path: Path) -> None:
    result = command("train", *RUN, f"data.path='{text_file}'", "name=first")
    assert result.returncode == 0, result.stderr
    (run_dir,) = (tmp_path / "outputs" / "first").iterdir()
    for expected in (
        "at weight decay 0.1",
        "step 7 of 7: val/loss",
        "finished after 7 steps",
        " in all, ",
        "a sample at",
    ):
        assert expected in result.stdout
    commands = [line.split() for line in result.stdout.splitlines() if line.startswith("  python -m gptlab.")]
    assert [words[2] for words in commands] == ["gptlab.generate", "gptlab.train"]
    assert (run_dir / "train.log").read_text().count("finished after 7 steps") == 1
    assert "finished after" in (run_dir / "train.log").read_text()

    first, second = (
        command("generate", str(run_dir), "the cat", "--max-new-tokens", "23", "--seed", "5", "--num-samples", "2")
        for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert first.stdout.count("the cat") == 2
    assert "step 7), val/loss" in first.stderr

    page = read_page(run_dir / "index.html")
    assert f"\n  page        {run_dir.relative_to(tmp_path) / 'index.html'}\n" in result.stdout
    assert page["curves"]["axes"]["step"][-1] == 7
    assert ["trainer.max_steps", "2000", "7"] in page["presets"]["changed"]
    assert ["model.n_embd", "128", "33"] in page["presets"]["changed"]
    assert ["data.name", "auto", "text"] in page["presets"]["defaults"]
    assert page["presets"]["groups"] == ["data=text", "trainer=cpu"]

    result = command("train", f"resume={run_dir.relative_to(tmp_path)}", "trainer.max_steps=9")
    assert result.returncode == 0, result.stderr
    assert " this time, " in result.stdout
    page = read_page(run_dir / "index.html")
    assert page["curves"]["axes"]["step"][0] == 0
    assert page["curves"]["axes"]["step"][-1] == 9
    assert ["trainer.max_steps", "2000", "9"] in page["presets"]["changed"]
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 9
    assert len(list((tmp_path / "outputs" / "first").iterdir())) == 1  # no second directory


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=gpt99"], ["model=gpt99: there is no such choice", "gpt10m"]),
        (
            ["experiment=frist"],
            ["experiment=frist: there is no such choice; did you mean first? there are addition, addition_grpo,"],
        ),
        (["model.n_head=4,1"], ["model.n_head=4,1: has several values; add -m", "[4,1]"]),
        (["model.n_layr=3"], ["model.n_layr: there is no such key here; did you mean model.n_layer?"]),
        (["task.beta=0.2"], ["task.beta: is a key of task=dpo; choose task=dpo, or leave it out"]),
        (["task.clip=0.2"], ["task.clip: is a key of task=grpo and task=ppo; choose task=grpo, or leave it out"]),
        (["sed=3"], ["sed: there is no such key here; did you mean seed?"]),
        (["+model.n_layr=3"], ["model.n_layr=3: there is no such key; did you mean n_layer?"]),
        (["model=3"], ["model", "--help shows the choices"]),
        (["model"], ["model: must be key=value, or group=choice, e.g. model=gpt1m"]),
        (["data=text"], ["data=text needs a file: add data.path=my.txt"]),
        (["data=text", "data.path=none.txt"], ["data.path=none.txt: no such file"]),
        (["data=shakespeare_char", "data.dir=."], ["tinyshakespeare.txt", "data=pydoc_char"]),
        (["resume=outputs/none"], ["outputs/none is not a run directory", "outputs/<name>/<time>"]),
    ],
)
def test_a_refused_run_is_one_message_and_leaves_nothing(
    command: Any, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(command("train", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b" \n\n ", ["is empty"]),
        (b"ab\0cd" * 99, ["binary"]),
        ("Grüße".encode("latin-1") * 99, ["is not UTF-8 text", "iconv"]),
        (b"a" * 17, ["model.block_size=17 is longer than the training part", "15 tokens"]),
        (b"x", ["the train part", "1 in all", "give more text"]),
    ],
)
def test_text_that_cannot_be_trained_on(command: Any, tmp_path: Path, content: bytes, words: list[str]) -> None:
    (tmp_path / "my.txt").write_bytes(content)
    assert_refused(command("train", *RUN, "data.path=my.txt"), *words)
    assert not (tmp_path / "outputs").exists()


def test_a_full_disk_is_one_message(command: Any, text_file: Path, tmp_path: Path) -> None:
    """A file size limit stands for the full disk: the system refuses the write in the same way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        refused = command("train", *RUN, f"data.path='{text_file}'", "model.n_embd=132", "hydra.run.dir=full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_refused(refused, "cannot write in", "free some space", "hydra.run.dir")
    assert list((tmp_path / "full" / "checkpoints").iterdir()) == []


def test_a_page_that_cannot_be_written_is_one_line(
    command: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise UserError("cannot write in mine: No space left on device")

    monkeypatch.setattr("gptlab.reports.pages.run_page.write_atomically", full)
    words = (*RUN, f"data.path='{text_file}'", "hydra.run.dir=mine", "trainer.max_steps=1")
    result = command("train", *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the run's page is not written: cannot write in mine: No space left on device\n") == 1
    assert "finished after 1 steps" in result.stdout
    assert "  page  " not in result.stdout
    assert (tmp_path / "mine" / "summary.json").is_file()


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "word"])
def test_tokens_that_cut_characters_are_joined_as_they_stream(command: Any, tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "my.txt").write_text("größer 中文 😀, ja. " * 200)
    size = ["tokenizer.vocab_size=260"] if tokenizer == "bpe" else []
    learn = ("trainer.max_steps=60", "trainer.val_every=60", "optim.lr=1e-2", "model.n_embd=66", "model.block_size=31")
    trained = command("train", *RUN, *learn, f"tokenizer={tokenizer}", *size, "data.path=my.txt", "hydra.run.dir=run")
    assert trained.returncode == 0, trained.stderr
    text = command("generate", "run", "größer", "--temperature", "0", "--max-new-tokens", "24").stdout
    assert text.startswith("größer 中文 😀, ja.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], ["none: no such run directory or checkpoint file"]),
        (["."], ["is not a run directory with a checkpoint"]),
        (["{trained}", "Ω the"], ["characters that the model has never seen: 'Ω'"]),
        (["{trained}/config.yaml"], ["is broken or no checkpoint"]),
        (["{trained}", "--device", "cuda"], ["--device cuda: there is none here"]),
    ],
)
def test_what_generate_refuses(command: Any, trained: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(command("generate", *(a.format(trained=trained) for a in arguments)), *words)


@pytest.mark.parametrize(
    "flag", [("--temperature", "-1"), ("--top-k", "0"), ("--top-p", "1.5"), ("--max-new-tokens", "x")]
)
def test_generates_flags_are_checked(command: Any, trained: Path, flag: tuple[str, str]) -> None:
    result = command("generate", str(trained), "the", *flag)
    assert result.returncode == 2
    assert f"argument {flag[0]}" in result.stderr
    assert "Traceback" not in result.stderr


def test_greedy_needs_no_seed_and_a_long_prompt_is_cropped_aloud(command: Any, trained: Path) -> None:
    arguments = (str(trained), "the cat sees a dog" * 3, "--temperature", "0", "--max-new-tokens", "7")
    a, b = command("generate", *arguments), command("generate", *arguments)
    assert a.stdout == b.stdout
    assert "sees the last 17 tokens of the prompt only" in a.stderr


def test_ctrl_c_saves_and_exits_with_130_and_the_run_goes_on(
    command: Any, shell: Any, text_file: Path, tmp_path: Path
) -> None:
    endless = (*RUN, f"data.path='{text_file}'", "trainer.max_steps=100000", "trainer.val_every=20")
    process = shell("-m", "gptlab.train", *endless, "hydra.run.dir=long")
    assert any("step 20 of 100000" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "go on with: python -m gptlab.train resume=long" in stdout
    steps = int(stdout.split("stopped after step ")[1].split()[0])
    result = command("train", "resume=long", f"trainer.max_steps={steps + 2}")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "long" / "summary.json").read_text())["steps"] == steps + 2


def test_on_a_terminal_there_is_a_bar_with_loss_speed_and_time_left(
    command: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # how Linux says that the other side is closed
            while chunk := os.read(ours, 4096):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        words = ("trainer.max_steps=100", "trainer.val_every=99")
        assert command("train", *RUN, f"data.path='{text_file}'", *words).returncode == 0
    reader.join()
    os.close(ours)
    for expected in (b"/100 [", b" left, loss 2.", b", val 2.", b" tokens/s]"):
        assert expected in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg", "job"],
        ["init_from=gpt2", "--cfg", "job"],
        ["resume=auto", "--cfg", "job"],
        ["-sc", "query=bash"],
    ],
)
def test_help_config_and_completion_need_no_torch(shell: Any, arguments: list[str]) -> None:
    """They answer in under half a second; importing torch and Lightning alone takes four."""
    process = shell("-X", "importtime", "-m", "gptlab.train", *arguments)
    stderr = process.communicate(timeout=60)[1]
    imported = {line.rpartition("|")[2].strip() for line in stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "lightning", "numpy", "tensorboard"}


@pytest.mark.filterwarnings("ignore:'gptlab.* found in sys.modules:RuntimeWarning")  # only here, where it is imported
def test_the_console_script_has_the_same_verbs_and_completes(
    command: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "train " in command("cli", "--help").stdout
    assert_refused(command("cli", "trian"), "trian: no such verb", "generate")
    generated = command("cli", "generate", str(trained), "the", "--max-new-tokens", "3", "--temperature", "0")
    assert generated.stdout.startswith("the")
    assert "model=gpt10m" in command("cli", "train", "--help").stdout
    assert "complete" in command("cli", "-sc", "install=bash").stdout

    def completions(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        return command("cli", "-sc", "query=bash").stdout.split()

    assert completions("gptlab tr") == [
        "train",
        "prepare",
        "generate",
        "rank",
        "serve",
        "evaluate",
        "explain",
        "export",
        "report",
        "tokenize",
        "lesson",
        "bench",
    ]
    assert "model=gpt10m" in completions("gptlab train model=gpt1")
    assert "optim.lr=" in completions("gptlab train optim.")
    assert "model=gpt10m" in completions("gptlab bench model=gpt1")
