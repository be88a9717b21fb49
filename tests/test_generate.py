"""`python -m gptlab.generate` as a user types it, with random models and models that say given tokens."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from huggingface_hub import constants as huggingface_hub_constants
from safetensors.torch import save_file

from gptlab import models
from gptlab.data.tokenizers import (
    BYTES,
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    JsonTokenizer,
    Tokenizer,
)
from gptlab.formats import checkpoint, description, huggingface_config, huggingface_names, huggingface_tokenizer
from gptlab.generation import decoding, sampling
from gptlab.generation.batch import Batch
from gptlab.generation.text_stream import TextStream
from gptlab.generation.torch_context import TorchContext
from gptlab.models import GPTConfig
from gptlab.models.bigram import BigramConfig
from gptlab.models.weights import parameters
from tests.generation.contexts import watch
from tests.test_cli import assert_refused

ABC = CharTokenizer("\n abcdefghijk")
LESSON = "Every effort moves you"


def saved(path: Path, model: models.Model, tokenizer: Tokenizer, config: dict[str, Any] | None = None) -> Path:
    about = checkpoint.describe(model, tokenizer, config or {}, "", 7, {"val/loss": 1.25})
    state = {description.PREFIX + name: value for name, value in parameters(model).items()}
    checkpoint.save_checkpoint({description.KEY: about, "state_dict": state}, path)
    return path


def gpt(path: Path, tokenizer: Tokenizer, seed: int = 1, config: dict[str, Any] | None = None, **fields: Any) -> Path:
    """The checkpoint of a random model with confident predictions; config: of the run that made it."""
    torch.manual_seed(seed)
    shape = {"block_size": 61, "n_layer": 2, "n_head": 3, "n_embd": 33} | fields
    model = models.build(GPTConfig(tokenizer.vocab_size, **shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return saved(path, model, tokenizer, config)


def saying(path: Path, tokenizer: Tokenizer, ids: list[int]) -> Path:
    """The checkpoint of a model that repeats these tokens in order, without end."""
    assert len(set(ids)) == len(ids)
    model = models.build(BigramConfig(tokenizer.vocab_size))
    with torch.no_grad():
        for before, after in pairwise([*ids, ids[0]]):
            model.wte.weight[before, after] = 99.0
    return saved(path, model, tokenizer)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(gpt(tmp_path_factory.mktemp("model") / "random.ckpt", ABC))


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that repeats abcdefghijk and a newline, without end."""
    return str(saying(tmp_path_factory.mktemp("alphabet") / "a.ckpt", ABC, ABC.encode("abcdefghijk\n").tolist()))


@pytest.fixture
def objects(command: Any) -> Any:
    """objects(...) returns the objects that `generate ... --json` prints."""

    def objects(*arguments: str) -> list[dict[str, Any]]:
        result = command("generate", *arguments, "--json")
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    return objects


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """stdin("text") makes the text come through a pipe."""
    opened = []

    def stdin(content: str) -> None:
        (tmp_path / "stdin").write_text(content, encoding="utf-8")
        opened.append((tmp_path / "stdin").open(encoding="utf-8"))
        monkeypatch.setattr("sys.stdin", opened[-1])

    yield stdin
    for file in opened:
        file.close()


def texts(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["text"] for sample in samples]


# The text


def streamed(stream: TextStream, ids: list[int]) -> str:
    """The text that is shown; checks that after each token all that is certain is shown, and nothing else."""
    shown = ""
    for token in ids:
        shown += "".join(piece.text for piece in stream.add(token))
    return shown + "".join(piece.text for piece in stream.close())


@pytest.mark.parametrize("by", ["characters", "bytes", "merges"])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abc. def", ["."], "abc"),
        ("abcabd", ["abd"], "abc"),
        ("aaab", ["aab"], "a"),  # a beginning that fails is the beginning of another
        ("abcd", ["bcd", "c"], "ab"),  # the first that is complete, however the text is cut
        ("abc", ["abcd"], "abc"),
        ("größe 中文", ["文"], "größe 中"),
        ("größe\n\nja", ["\n\n"], "größe"),
        ("abc", [], "abc"),
    ],
)
def test_a_text_ends_before_its_stop_string(by: str, text: str, stops: list[str], expected: str) -> None:
    tokenizers = {
        "characters": CharTokenizer.fit([text]),
        "bytes": ByteTokenizer(),
        "merges": BPETokenizer.fit([f"{text} {text}"] * 9, 270),
    }
    tokenizer = tokenizers[by]
    stream = TextStream(tokenizer, stops)
    assert streamed(stream, tokenizer.encode(text).tolist()) == stream.text == expected
    assert stream.finish == ("length" if expected == text else "stop")


def test_what_could_become_a_stop_string_is_held_back_until_it_does_not() -> None:
    stream = TextStream(ABC, ["abc"])
    shown = ["".join(piece.text for piece in stream.add(int(token))) for token in ABC.encode("kababd")]
    assert shown == ["k", "", "", "ab", "", "abd"]


def test_a_character_cut_by_tokens_is_shown_whole_with_the_surprisal_of_all_its_tokens() -> None:
    stream = TextStream(ByteTokenizer())
    pieces = [stream.add(token, 2.0**i) for i, token in enumerate("a中b".encode())]
    assert pieces == [[("a", 1.0)], [], [], [("中", 14.0)], [("b", 16.0)]]
    assert stream.add("ü".encode()[0], 32.0) == []
    assert stream.close() == [("\ufffd", 32.0)]  # no more tokens come


def test_characters_that_span_tokens_stream_as_they_are(command: Any, tmp_path: Path) -> None:
    ids = [*"aé中😀b\n".encode()]
    saying(tmp_path / "m.ckpt", ByteTokenizer(), ids)
    result = command("generate", "m.ckpt", "a", "--temperature", "0", "--max-new-tokens", str(len(ids)))
    assert result.stdout == "aé中😀b\na\n"


def test_end_of_text_ends_a_row_and_is_not_shown(command: Any, objects: Any, tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc", end_of_text=True)
    saying(tmp_path / "m.ckpt", tokenizer, [0, 1, 2, 3])
    assert command("generate", "m.ckpt", "a").stdout == "abc\n"
    (sample,) = objects("m.ckpt", "a")
    assert (sample["text"], sample["tokens"], sample["finish"]) == ("bc", [1, 2, 3], "end_of_text")


def test_rows_end_each_by_itself(command: Any, objects: Any, alphabet: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a\ni\n")
    arguments = (alphabet, "--prompt-file", "p", "--lines", "--stop", "k", "--stop", "fg", "--max-new-tokens", "7")
    short, long = objects(*arguments)[1], objects(*arguments)[0]
    assert (long["text"], long["finish"], long["new_tokens"]) == ("bcde", "stop", 6)
    assert (short["text"], short["finish"], short["tokens"]) == ("j", "stop", ABC.encode("jk").tolist())
    assert command("generate", *arguments).stdout == "--- prompt 1 of 2\nabcde\n--- prompt 2 of 2\nij\n"


def test_tokens_run_out(objects: Any, alphabet: str) -> None:
    assert objects(alphabet, "a", "--max-new-tokens", "3")[0]["finish"] == "length"
    (nothing,) = objects(alphabet, "a", "--max-new-tokens", "0")
    assert (nothing["text"], nothing["tokens"], nothing["finish"]) == ("", [], "length")


# Seeds


@pytest.mark.parametrize("flags", [[], ["--top-k", "5"], ["--top-p", "0.7", "--repetition-penalty", "1.3"]])
def test_a_sample_is_the_same_alone_and_in_a_batch(objects: Any, model: str, flags: list[str]) -> None:
    arguments = (model, "abc", "--max-new-tokens", "80", *flags)
    five = objects(*arguments, "--num-samples", "5", "--seed", "3")
    assert [sample["seed"] for sample in five] == [3, 4, 5, 6, 7]
    assert len({sample["text"] for sample in five}) == 5
    for sample in five:
        (alone,) = objects(*arguments, "--seed", str(sample["seed"]))
        assert alone["text"] == sample["text"]


def test_prompts_of_any_lengths_are_drawn_together_as_alone(objects: Any, model: str, tmp_path: Path) -> None:
    lines = ["a", "the cab faded"[4:], "k" * 59]
    (tmp_path / "p").write_text("\n".join(lines))
    arguments = ("--max-new-tokens", "31", "--seed", "5")
    together = objects(model, "--prompt-file", "p", "--lines", *arguments)
    assert [sample["prompt"] for sample in together] == lines
    assert texts(together) == [objects(model, line, *arguments)[0]["text"] for line in lines]


def test_more_samples_than_are_drawn_at_once(objects: Any, model: str) -> None:
    arguments = (model, "a", "--max-new-tokens", "9")
    many = objects(*arguments, "--num-samples", "67", "--seed", "1")
    assert [sample["sample"] for sample in many] == [*range(1, 68)]
    assert texts(many[64:]) == texts(objects(*arguments, "--num-samples", "3", "--seed", "65"))


def test_the_cache_changes_nothing(objects: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (model, "abc", "--max-new-tokens", "80", "--num-samples", "3", "--seed", "5")
    cached = texts(objects(*arguments))

    def uncached(model: Any, prompts: Any, room: int, **options: Any) -> TorchContext:
        return TorchContext(model, prompts, room, cache=False)

    monkeypatch.setattr("gptlab.generation.opening.load_library", lambda: None)
    monkeypatch.setattr("gptlab.generation.batch.open_context", uncached)
    assert texts(objects(*arguments)) == cached


@pytest.mark.slow  # inductor takes its time
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_changes_nothing(objects: Any, model: str) -> None:
    line = (model, "abc", "--num-samples", "3", "--seed", "5", "--max-new-tokens", "70")
    assert texts(objects(*line, "--compile")) == texts(objects(*line))


def test_without_a_seed_the_one_that_was_drawn_is_told(command: Any, model: str) -> None:
    first = command("generate", model, "a", "--max-new-tokens", "29")
    (seed,) = re.findall(r"29 tokens in [\d.]+ s, [\d,.]+ tokens/s, --seed (\d+)\n", first.stderr)
    again = command("generate", model, "a", "--max-new-tokens", "29", "--seed", seed)
    assert again.stdout == first.stdout
    assert command("generate", model, "a", "--max-new-tokens", "29").stdout != first.stdout


def test_filters_reach_the_draw(objects: Any, model: str) -> None:
    def text(*flags: str) -> str:
        return objects(model, "abc", "--max-new-tokens", "40", "--seed", "2", *flags)[0]["text"]

    greedy = text("--temperature", "0")
    assert text("--top-k", "1") == text("--top-p", "1e-6") == text("--min-p", "1") == greedy
    assert len({greedy, text(), text("--temperature", "3"), text("--repetition-penalty", "3")}) == 4


# What is shown


def test_several_samples_have_their_headers(command: Any, alphabet: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a\nb\n")
    arguments = (alphabet, "--max-new-tokens", "2", "--num-samples", "2", "--seed", "5")
    assert command("generate", *arguments, "a").stdout == (
        "--- sample 1 of 2, --seed 5\nabc\n--- sample 2 of 2, --seed 6\nabc\n"
    )
    stdout = command("generate", *arguments, "--prompt-file", "p", "--lines").stdout
    assert stdout.startswith("--- prompt 1 of 2, sample 1 of 2, --seed 5\nabc\n")
    assert stdout.endswith("--- prompt 2 of 2, sample 2 of 2, --seed 6\nbcd\n")


def test_the_model_is_named_and_the_speed_told_apart_from_the_text(command: Any, alphabet: str) -> None:
    result = command("generate", alphabet, "a", "--max-new-tokens", "3", "--temperature", "0")
    assert result.stdout == "abcd\n"
    about, speed = result.stderr.splitlines()
    assert about == f"{alphabet} (gptlab run, step 7), val/loss 1.2500"
    assert re.fullmatch(re.escape(alphabet) + r": 3 tokens in \d+\.\d\d s, [\d,.]+ tokens/s", speed)


def test_a_long_prompt_is_cropped_aloud_once(command: Any, model: str) -> None:
    result = command("generate", model, "abc" * 21, "--max-new-tokens", "2", "--num-samples", "3")
    assert result.stderr.count("sees the last 61 tokens of the prompt only") == 1
    assert "sees the last" not in command("generate", model, "a" * 61, "--max-new-tokens", "2").stderr


def test_json_says_all_of_a_sample(objects: Any, model: str) -> None:
    first, second = objects(model, "abc", "--num-samples", "2", "--seed", "5", "--max-new-tokens", "11")
    assert {key: second[key] for key in ("model", "prompt", "sample", "seed", "new_tokens", "finish")} == {
        "model": model,
        "prompt": "abc",
        "sample": 2,
        "seed": 6,
        "new_tokens": 11,
        "finish": "length",
    }
    assert second["text"] == ABC.decode(second["tokens"]) != first["text"]
    assert "bits" not in first


@torch.no_grad()
def by_hand(path: str, prompt: str, tokens: list[int]) -> list[float]:
    model, tokenizer, _ = checkpoint.load_checkpoint(Path(path))
    ids = tokenizer.encode(prompt).tolist()
    probabilities = model(torch.tensor([ids + tokens]))[0].double().softmax(dim=-1)
    return [-math.log2(probabilities[len(ids) - 1 + i, token]) for i, token in enumerate(tokens)]


@pytest.mark.parametrize("flags", [[], ["--temperature", "3", "--top-k", "5"], ["--draft", "{model}"]])
def test_surprisal_is_of_the_models_own_distribution(objects: Any, model: str, flags: list[str]) -> None:
    flags = [flag.format(model=model) for flag in flags]
    for sample in objects(model, "abc", "--show-probs", "--num-samples", "2", "--max-new-tokens", "17", *flags):
        assert sample["bits"] == pytest.approx(by_hand(model, "abc", sample["tokens"]), abs=1e-4)
        assert sample["token_texts"] == [*sample["text"]]


def test_without_colours_the_surprisal_stands_in_brackets(command: Any, objects: Any, model: str) -> None:
    arguments = (model, "abc", "--show-probs", "--seed", "5", "--max-new-tokens", "60", "--temperature", "9")
    (sample,) = objects(*arguments)
    assert "\n" in sample["text"]
    shown = (
        f"↵[{bits:.2f}]\n" if c == "\n" else f"{c}[{bits:.2f}]"
        for c, bits in zip(sample["text"], sample["bits"], strict=True)
    )
    legend, _, text = command("generate", *arguments).stdout.partition("\n")
    assert legend == "[bits]: the surprisal of the token before it, -log2 of its probability"
    assert text == "abc" + "".join(shown) + "\n"


def test_on_a_terminal_surprising_tokens_are_red(
    command: Any, objects: Any, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (model, "abc", "--show-probs", "--seed", "5", "--max-new-tokens", "60", "--temperature", "3")
    (sample,) = objects(*arguments)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    legend, _, shown = command("generate", *arguments).stdout.partition("\n")
    assert re.findall(r"48;5;(\d+)m (\d+)\+", legend)[0] == ("120", "0")
    colours = [int(colour) for colour in re.findall(r"48;5;(\d+)m[ a-k↵]", shown)]
    assert len(colours) == 60
    steps = [(10, 210), (8, 216), (6, 222), (4, 228), (2, 193), (1, 156), (0, 120)]
    assert colours == [next(colour for least, colour in steps if bits >= least) for bits in sample["bits"]]
    assert len(set(colours)) >= 4
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;5" not in command("generate", *arguments).stdout


def test_models_stand_side_by_side_each_with_its_own_tokenizer(
    command: Any, objects: Any, alphabet: str, tmp_path: Path
) -> None:
    backwards = ByteTokenizer()
    saying(tmp_path / "b.ckpt", backwards, backwards.encode("kjihgfedcba\n").tolist())
    (tmp_path / "a.ckpt").symlink_to(alphabet)
    (tmp_path / "p").write_text("f\nk\n")
    arguments = ("a.ckpt", "--also", "b.ckpt", "--prompt-file", "p", "--lines", "--max-new-tokens", "5")
    result = command("generate", *arguments)
    cells = [line.split() for line in result.stdout.splitlines() if line.strip(" ─")]
    assert cells[:2] == [["prompt", "a.ckpt", "b.ckpt"], ["f", "ghijk", "edcba"]]
    assert cells[2] == ["k", "jihgf"]  # the other one begins with a new line
    assert cells[3] == ["abcd"]
    assert result.stderr.count("10 tokens in") == 2
    assert [(sample["model"], sample["text"]) for sample in objects(*arguments)] == [
        ("a.ckpt", "ghijk"),
        ("a.ckpt", "\nabcd"),
        ("b.ckpt", "edcba"),
        ("b.ckpt", "jihgf"),
    ]
    arguments = ("a.ckpt", "f", "--also", "b.ckpt", "--max-new-tokens", "1", "--num-samples", "2", "--seed", "5")
    assert re.search(r"f +6 +g\[0\.00\] +e\[0\.00\]", command("generate", *arguments, "--show-probs").stdout)
    assert_refused(command("generate", "b.ckpt", "ü", "--also", "a.ckpt"), "a.ckpt: the prompt has", "never seen: 'ü'")


# Prompts


@pytest.mark.parametrize(
    ("content", "expected"),
    [("abc\n", "abcde\n"), ("abc", "abcde\n"), ("\ufeffabc\r\n", "abcde\n"), ("abc\n\n", "abc\nab\n")],
)
def test_a_prompt_comes_from_a_file_or_a_pipe_without_its_last_line_end(
    command: Any, alphabet: str, tmp_path: Path, stdin: Any, content: str, expected: str
) -> None:
    (tmp_path / "p").write_text(content, encoding="utf-8", newline="")
    flags = ("--max-new-tokens", "2", "--temperature", "0")
    assert command("generate", alphabet, "--prompt-file", "p", *flags).stdout == expected
    stdin(content)
    assert command("generate", alphabet, *flags).stdout == expected


def test_lines_of_a_pipe_are_prompts(objects: Any, alphabet: str, stdin: Any) -> None:
    stdin("abc\n\nk\n")
    assert [sample["prompt"] for sample in objects(alphabet, "--lines", "--max-new-tokens", "1")] == ["abc", "k"]
    stdin("abc\n\nk\n")
    assert [sample["prompt"] for sample in objects(alphabet, "--max-new-tokens", "1")] == ["abc\n\nk"]


def test_a_prompt_goes_before_a_pipe_and_an_empty_pipe_is_none(command: Any, alphabet: str, stdin: Any) -> None:
    stdin("k")
    assert command("generate", alphabet, "a", "--max-new-tokens", "1").stdout == "ab\n"
    stdin("")
    assert command("generate", alphabet, "--max-new-tokens", "1").stdout == "\na\n"


def test_without_a_prompt_it_begins_with_a_new_line(
    command: Any, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("no file has this"))
    assert command("generate", alphabet, "--max-new-tokens", "2").stdout == "\nab\n"


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "expected"),
    [
        (CharTokenizer("ACGT"), "\n", "A"),  # no new line: what the trainer's own samples begin with
        (CharTokenizer("晚林狐狼王"), "\n", "晚"),
        (CharTokenizer("0123456789"), "31", "31"),
        (CharTokenizer("\n abc"), "Xab", "ab"),
        (CharTokenizer("abc", end_of_text=True), "\n", ""),
        (ByteTokenizer(), "\n", "\n"),
        (ByteTokenizer(), "Лиса", "Лиса"),
    ],
)
def test_without_a_prompt_it_begins_as_the_runs_own_samples(
    objects: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, prompt: str, expected: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    model = models.build(BigramConfig(tokenizer.vocab_size))
    about = checkpoint.describe(model, tokenizer, {"trainer": {"sample_prompt": prompt}, "data": {}}, "", 7, {})
    state = {description.PREFIX + name: value for name, value in parameters(model).items()}
    checkpoint.save_checkpoint({description.KEY: about, "state_dict": state}, tmp_path / "m.ckpt")
    (sample,) = objects("m.ckpt", "--max-new-tokens", "2")
    assert sample["prompt"] == expected
    ids = decoding.prompt_ids(tokenizer, expected)
    assert ids == decoding.prompt_ids(tokenizer, prompt)  # as `training/callbacks/samples` draws it


def test_an_empty_line_of_a_talk_without_new_lines(command: Any, tmp_path: Path, stdin: Any) -> None:
    saying(tmp_path / "m.ckpt", CharTokenizer("ACGT"), [0, 1, 2, 3])
    stdin("\n\nG\n")
    assert command("generate", "m.ckpt", "--interactive", "--max-new-tokens", "2").stdout == "CG\nTA\n"


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ([""], "MODEL"),
        (["{model}", "--also", ""], "--also"),
        (["{model}", "--draft", ""], "--draft"),
        (["{model}", "--prompt-file", ""], "--prompt-file"),
    ],
)
def test_nothing_names_no_model_and_no_file(command: Any, model: str, arguments: list[str], flag: str) -> None:
    result = command("generate", *(argument.format(model=model) for argument in arguments))
    assert result.returncode == 2
    assert f"argument {flag}: is empty" in result.stderr


def test_the_home_folder_in_flags(command: Any, alphabet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.ckpt").symlink_to(alphabet)
    (tmp_path / "p").write_text("c")
    flags = ("--prompt-file=~/p", "--max-new-tokens", "2")
    assert command("generate", "~/a.ckpt", *flags).stdout == "cde\n"


@pytest.mark.parametrize("code", ["utf-16", "utf-8-sig", "utf-32"])
def test_a_prompt_file_may_have_the_mark_of_its_encoding(
    command: Any, alphabet: str, tmp_path: Path, code: str
) -> None:
    (tmp_path / "p").write_bytes("abc\r\n".encode(code))  # as PowerShell writes
    assert command("generate", alphabet, "--prompt-file", "p", "--max-new-tokens", "2").stdout == "abcde\n"


def test_in_a_pipeline_text_comes_in_and_goes_out(shell: Any, alphabet: str) -> None:
    flags = ("--temperature", "0", "--stop", "i")
    process = shell("-m", "gptlab.generate", alphabet, *flags, stdin=-1)
    stdout, stderr = process.communicate("ab\n", timeout=60)
    assert (process.returncode, stdout) == (0, "abcdefgh\n"), stderr


def test_a_reader_that_has_had_enough_is_no_mistake(shell: Any, alphabet: str) -> None:
    process = shell("-m", "gptlab.generate", alphabet, "a", "--max-new-tokens", "100000")
    assert process.stdout.read(3) == "abc"
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(60)


# A talk


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """typed("a line", KeyboardInterrupt, ...) sets what `input` returns or raises, followed by Ctrl-D."""

    def typed(*lines: Any) -> None:
        left = [*lines, EOFError]

        def answer(prompt: str) -> str:
            line = left.pop(0)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", answer)
        monkeypatch.setattr("sys.stdin", io.StringIO())

    return typed


@pytest.mark.parametrize("n", [9, 40])  # within the block, and beyond
def test_each_line_is_answered_after_all_that_was_said(command: Any, model: str, typed: Any, n: int) -> None:
    flags = ("--max-new-tokens", str(n), "--temperature", "0")
    said, lines = "", ["abc", "fed", "k", "ha"]
    for line in lines:
        said += ("\n" if said and not said.endswith("\n") else "") + line + "\n"
        said += command("generate", model, said, *flags).stdout.removesuffix("\n").removeprefix(said)
    typed(*lines)
    result = command("generate", model, "--interactive", *flags)
    assert result.returncode == 0
    expected = said
    for line in lines:
        expected = re.sub(rf"(?m)^{line}\n", "", expected, count=1)
    assert result.stdout.rstrip("\n") == expected.rstrip("\n")
    assert f"{4 * n} tokens in" in result.stderr
    assert result.stderr.count("sees the last 61 tokens of what has been said only") == (n == 40)


def test_a_talk_can_open_with_a_prompt(command: Any, model: str, typed: Any) -> None:
    flags = ("--max-new-tokens", "9", "--temperature", "0")
    typed("fed")
    talk = command("generate", model, "abc", "--interactive", *flags).stdout
    assert talk.replace("abc\n", "abc\nfed\n").rstrip("\n") == command(
        "generate", model, "abc\nfed\n", *flags
    ).stdout.rstrip("\n")


@pytest.mark.parametrize("fields", [{}, {"pos": "rope", "n_embd": 30, "block_size": 11}])
def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    command: Any, tmp_path: Path, typed: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """Tested also between the forward pass and the draw."""
    gpt(tmp_path / "m.ckpt", ABC, **fields)
    arguments = ("m.ckpt", "--temperature", "0", "--max-new-tokens", "13")
    draws = iter(range(100))

    def interrupted(self: Any, *arguments: Any) -> torch.Tensor:
        if next(draws) == 3:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    draw = sampling.Sampling.draw
    monkeypatch.setattr(sampling.Sampling, "draw", interrupted)
    typed("abc", "fed", KeyboardInterrupt, "never read")
    held = [flag for c in ABC.chars for flag in ("--stop", f"{c}!")]  # the last letter may begin one of these
    result = command("generate", *arguments, "--interactive", *held)
    assert result.returncode == 0
    assert "m.ckpt: 16 tokens in" in result.stderr
    said = command("generate", *arguments[:-1], "3", "abc\n").stdout
    expected = command("generate", *arguments, f"{said}fed\n").stdout
    assert result.stdout == expected.replace("abc\n", "", 1).replace("fed\n", "", 1)


def test_stops_and_the_end_of_text_end_an_answer_not_the_talk(
    command: Any, tmp_path: Path, typed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(monkeypatch)
    tokenizer = CharTokenizer("\nabcd", end_of_text=True)
    saying(tmp_path / "m.ckpt", tokenizer, [*tokenizer.encode("\nabcd"), 5])
    typed("a", "b")
    result = command("generate", "m.ckpt", "--interactive")
    assert result.stdout == "abcd\nabcd\n"
    assert "10 tokens in" in result.stderr
    assert tokenizer.decode(watched) == "a\nabcd\nb\nabcd<|endoftext|>"  # the first end is no part of the talk
    typed("a", "b")
    assert command("generate", "m.ckpt", "--interactive", "--stop", "c").stdout == "ab\nab\n"


def test_a_line_that_the_model_cannot_read_is_told_and_the_talk_goes_on(
    command: Any, alphabet: str, typed: Any, tmp_path: Path
) -> None:
    typed("über", "a")
    result = command("generate", alphabet, "--interactive", "--max-new-tokens", "3")
    assert (result.returncode, result.stdout) == (0, "abc\n")
    assert "error: " in result.stderr
    assert "never seen: 'r' 'ü'" in result.stderr
    saying(tmp_path / "m.ckpt", CharTokenizer("abc"), [0, 1, 2])  # no line has an end
    typed("a", "b")
    assert command("generate", "m.ckpt", "--interactive", "--max-new-tokens", "3").stdout == "bca\ncab\n"


def test_lines_of_a_talk_come_through_a_pipe_too(command: Any, alphabet: str, stdin: Any) -> None:
    stdin("a\nb\n")
    result = command("generate", alphabet, "--interactive", "--max-new-tokens", "3")
    assert (result.returncode, result.stdout) == (0, "abc\nabc\n")


def test_on_a_terminal_ctrl_c_ends_an_answer_and_ctrl_d_the_talk(shell: Any, alphabet: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 130, 0, 0))
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    endless = ("--max-new-tokens", "100000000", "--temperature", "0")
    process = shell("-m", "gptlab.generate", alphabet, "--interactive", *endless, **ends)
    os.close(theirs)

    def until(text: bytes) -> None:
        shown = b""
        while text not in shown:
            shown += os.read(ours, 4096)

    until(b"> ")
    os.write(ours, b"abc\n")
    until(b"abcdefghijk\r\nabcdefghijk")
    process.send_signal(signal.SIGINT)
    until(b"> ")
    os.write(ours, b"\x04")
    until(b"tokens/s")
    assert process.wait(60) == 0
    os.close(ours)


def test_ctrl_c_ends_a_sample_with_130_on_a_line_of_its_own(
    command: Any, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended: list[Any] = []

    def interrupted(self: Batch, *tokens: Any) -> None:
        appended.append(tokens)
        if len(appended) == 2:
            raise KeyboardInterrupt
        plain(self, *tokens)

    plain = Batch.append
    monkeypatch.setattr(Batch, "append", interrupted)
    result = command("generate", alphabet, "a", "--max-new-tokens", "5")
    assert (result.returncode, result.stdout) == (130, "abc\n")


# How it is computed


def test_a_draft_changes_the_speed_not_the_text(command: Any, model: str, tmp_path: Path) -> None:
    arguments = ("generate", model, "abc", "--max-new-tokens", "20", "--temperature", "0")
    plain = command(*arguments).stdout
    itself = command(*arguments, "--draft", model)
    assert itself.stdout == plain
    assert "5.00 a pass with --ahead 4" in itself.stderr
    gpt(tmp_path / "small.ckpt", ABC, seed=2, n_layer=1, block_size=23)
    other = command(*arguments, "--draft", "small.ckpt", "--ahead", "3")
    assert other.stdout == plain
    (kept,) = re.findall(r"([\d.]+) a pass with --ahead 3", other.stderr)
    assert 1 <= float(kept) < 4
    two = command(*arguments[:-2], "--seed", "3", "--num-samples", "2", "--draft", "small.ckpt")
    alone = command(*arguments[:-2], "--seed", "4", "--draft", "small.ckpt")
    assert two.stdout.endswith(f"--seed 4\n{alone.stdout}")


def test_a_draft_reads_ahead_where_the_window_slides(command: Any, tmp_path: Path) -> None:
    gpt(tmp_path / "m.ckpt", ABC, pos="rope", n_embd=30, block_size=11)
    arguments = ("generate", "m.ckpt", "abc", "--max-new-tokens", "30", "--temperature", "0")
    drafted = command(*arguments, "--draft", "m.ckpt", "--ahead", "5")
    assert drafted.stdout == command(*arguments).stdout
    assert "6.00 a pass with --ahead 5" in drafted.stderr


def test_a_draft_stops_where_the_text_does(command: Any, alphabet: str) -> None:
    result = command("generate", alphabet, "a", "--stop", "gh", "--draft", alphabet)
    assert result.stdout == "abcdef\n"


def test_bf16_says_nearly_the_same(objects: Any, model: str) -> None:
    arguments = (model, "abc", "--show-probs", "--temperature", "0", "--max-new-tokens", "3")
    (exact,), (rounded,) = objects(*arguments), objects(*arguments, "--precision", "bf16")
    assert rounded["bits"][0] == pytest.approx(exact["bits"][0], rel=0.2)
    assert rounded["bits"] != exact["bits"]


@pytest.mark.parametrize(("precision", "rel"), [("int8", 0.2), ("int4", 0.8)])
def test_weights_of_few_bits_say_nearly_the_same(
    objects: Any, command: Any, model: str, precision: str, rel: float
) -> None:
    arguments = (model, "abc", "--show-probs", "--temperature", "0", "--max-new-tokens", "3")
    (exact,), (rounded,) = objects(*arguments), objects(*arguments, "--precision", precision)
    assert rounded["bits"][0] == pytest.approx(exact["bits"][0], rel=rel)
    assert rounded["bits"] != exact["bits"]
    line = ("generate", model, "abc", "--precision", precision, "--max-new-tokens", "40", "--temperature", "0")
    plain = command(*line)
    assert f"({precision[3:]} bits" in plain.stderr or f", {precision[3:]} bits" in plain.stderr
    assert command(*line, "--kv-cache", "bf16").stdout == plain.stdout
    assert command(*line, "--draft", model).stdout == plain.stdout  # the same bits for one token and for several


def test_a_word_model_talks(command: Any, typed: Any, tmp_path: Path) -> None:
    from gptlab.data.tokenizers import WordTokenizer

    tokenizer = WordTokenizer(["to", "be", "or", "not"])
    saying(tmp_path / "m.ckpt", tokenizer, [1, 2, 3, 4])
    typed("to", "", "or")
    assert command("generate", "m.ckpt", "--interactive", "--max-new-tokens", "2").stdout == " be or\n not to\n"


# Special tokens in prompts


def chat_tokenizer() -> JsonTokenizer:
    """Bytes, and the tokens of a chat: after <|user|> a question, after <|bot|> its answer, which <|end|> ends."""
    backend = hf.Tokenizer(hf.models.BPE({letter: i for i, letter in enumerate(BYTES)}, []))
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = hf.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "<|user|>", "<|bot|>", "<|end|>"])
    backend.post_processor = hf.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return JsonTokenizer(backend.to_str(), 259)


@pytest.fixture
def chat(tmp_path: Path) -> str:
    tokenizer = chat_tokenizer()
    answer = [258, *tokenizer.encode("Hey").tolist(), 259]
    return str(saying(tmp_path / "chat.ckpt", tokenizer, answer))


def test_a_chat_model_is_asked_in_its_own_form(command: Any, chat: str, tmp_path: Path) -> None:
    prompt = "<|user|>Hi<|bot|>"
    flags = ("--temperature", "0", "--max-new-tokens", "9")
    result = command("generate", chat, prompt, "--special", *flags)
    assert result.stdout == f"{prompt}Hey\n"
    assert command("generate", chat, prompt, *flags).stdout != result.stdout  # "<|bot|>" is text: it ends with ">"
    (tmp_path / "p.txt").write_text(f"{prompt}\nHi<|bot|>")
    for name in ("--prompt-file", "--lines"):
        arguments = [name, "p.txt"] if name == "--prompt-file" else [name, "--prompt-file", "p.txt"]
        assert command("generate", chat, *arguments, "--special", *flags).stdout.endswith("Hi<|bot|>Hey\n")
    stopped = command("generate", chat, "<|user|>Hi", "--special", "--stop", "<|bot|>", *flags)
    assert stopped.returncode == 0
    assert "<|bot|>" not in stopped.stdout


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_a_text_begins_once(begin: str) -> None:
    tokenizer = chat_tokenizer()
    assert decoding.prompt_ids(tokenizer, f"{begin}<|user|>", special=True) == [256, 257]
    assert decoding.prompt_ids(tokenizer, "<s>", special=False) == [256, *tokenizer.encode("<s>")]


@pytest.mark.parametrize("special", [True, False])
def test_a_chat_keeps_the_end_of_each_answer(
    command: Any, tmp_path: Path, typed: Any, monkeypatch: pytest.MonkeyPatch, special: bool
) -> None:
    watched = watch(monkeypatch)
    tokenizer = chat_tokenizer()
    saying(tmp_path / "chat.ckpt", tokenizer, [*tokenizer.encode("\nHey").tolist(), 259])
    typed("<|user|>Hi<|bot|>", "<|user|>Ho<|bot|>")
    result = command("generate", "chat.ckpt", "--interactive", *["--special"] * special)
    assert result.stdout == "Hey\nHey\n"
    end = "<|end|>" if special else ""
    assert tokenizer.decode(watched).endswith(f"<|bot|>\nHey{end}\n<|user|>Ho<|bot|>\nHey<|end|>")
    assert (257 in watched) == special


def test_characters_of_the_names_need_no_tokens(command: Any, tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abc", end_of_text=True)
    model = str(saying(tmp_path / "m.ckpt", tokenizer, [0, 1, 2]))
    prompt = f"a{END_OF_TEXT}a"
    assert_refused(command("generate", model, prompt), "the prompt has characters that the model has never seen: '<'")
    result = command("generate", model, prompt, "--special", "--max-new-tokens", "2")
    assert result.stdout == f"{prompt}bc\n"


# The lesson's line


def test_the_lessons_line_works_without_a_network_once_gpt2_is_there(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    flags = ("--max-new-tokens", "30", "--temperature", "0.5", "--top-k", "3", "--seed", "1")
    assert_refused(command("generate", "gpt2", LESSON, *flags), "gpt2: there is no such file", "hf download")

    folder = tmp_path / "hub" / "models--openai-community--gpt2" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("abc")
    tokenizer = BPETokenizer.fit([f"{LESSON} größer 中文. "] * 9, 300)
    torch.manual_seed(1)
    tiny = models.build(GPTConfig(tokenizer.vocab_size, block_size=31, n_layer=2, n_head=3, n_embd=33))
    (folder / "config.json").write_text(json.dumps(huggingface_config.config_to_hf(tiny.config)))
    save_file(
        huggingface_names.weights_to_hf(parameters(tiny), tiny.config),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for name, content in huggingface_tokenizer.tokenizer_files(tokenizer, 31).items():
        (folder / name).write_text(content, "utf-8")
    result = command("generate", "gpt2", LESSON, *flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(LESSON)
    assert len(result.stdout) > len(LESSON) + 10
    assert "(Hugging Face gpt2)" in result.stderr
    assert "gpt2: 30 tokens in" in result.stderr


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "aXb"], ["{model}: the prompt has characters that the model has never seen: 'X'; leave them out"]),
        (["{model}", ""], ["PROMPT is empty", "leave it out to begin as the samples of a run do"]),
        (["none"], ["none: no such run directory or checkpoint file"]),
        (["{model}", "a", "--special"], ["--special: {model} has no special tokens (its tokenizer is char"]),
        (["{model}", "--interactive", "--json"], ["leave --json out, or --interactive"]),
        (["{model}", "--interactive", "--also", "{model}"], ["leave --also out, or --interactive"]),
        (["{model}", "--interactive", "--draft", "{model}"], ["leave --draft out, or --interactive"]),
        (["{model}", "--interactive", "--lines"], ["leave --lines out, or --interactive"]),
        (["{model}", "--interactive", "--num-samples", "2"], ["leave --num-samples out, or --interactive"]),
        (["{model}", "--interactive", "X"], ["the prompt has characters", "'X'"]),
        (["{model}", "--draft", "{model}", "--also", "{model}"], ["leave --also out, or --draft"]),
        (["{model}", "--interactive", "--compile"], ["leave --compile out, or --interactive"]),
        (["{model}", "--draft", "{model}", "--compile"], ["--compile reads one token at a time", "leave one of them"]),
        (
            ["{model}", "--precision", "int4", "--compile"],
            ["--precision int4 is computed by a library of ours: leave --c"],
        ),
        (
            ["{model}", "--precision", "int4", "--device", "cuda"],
            ["--precision int4 is for a CPU", "or use int8 with --compile"],
        ),
        (
            ["bigram.ckpt", "a", "--precision", "int8"],
            ["--precision int8: bigram.ckpt: it is a Bigram, and no GPT; use fp32"],
        ),
        (
            ["{model}", "--kv-cache", "bf16"],
            ["--kv-cache bf16 goes with --precision int8 and int4, without --compile: leave it out"],
        ),
        (["{model}", "--ahead", "3"], ["--ahead 3", "give --draft MODEL"]),
        (["{model}", "--stop", ""], ["--stop ''", "give some text"]),
        (["{model}", "a", "--prompt-file", "p"], ["a PROMPT and --prompt-file p: leave one of them out"]),
        (["{model}", "a", "--lines"], ["--lines is for the lines of --prompt-file FILE or of a pipe"]),
        (["{model}", "--lines"], ["--lines: give --prompt-file FILE, or send them through a pipe"]),
        (["{model}", "--prompt-file", "none"], ["--prompt-file none: No such file or directory"]),
        (["{model}", "--prompt-file", "."], ["--prompt-file .: Is a directory"]),
        (["{model}", "--prompt-file", "latin"], ["--prompt-file latin is not UTF-8 text (byte 0xfc at 1)"]),
        (["{model}", "--prompt-file", "empty"], ["--prompt-file empty is empty; give some text"]),
        (["{model}", "--prompt-file", "blank", "--lines"], ["--prompt-file blank is empty; give some text"]),
        (
            ["{model}", "a", "--draft", "bytes.ckpt"],
            ["--draft bytes.ckpt has another tokenizer (byte, 256 tokens) than"],
        ),
        (["{model}", "--device", "mps"], ["--device mps: there is none here; use --device cpu"]),
    ],
)
def test_what_generate_refuses(
    command: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "latin").write_bytes("aü".encode("latin-1"))
    (tmp_path / "empty").touch()
    (tmp_path / "blank").write_text("\n\n")
    saying(tmp_path / "bytes.ckpt", ByteTokenizer(), [0, 1])
    saved(tmp_path / "bigram.ckpt", models.build(BigramConfig(ABC.vocab_size)), ABC)
    result = command("generate", *(argument.format(model=model) for argument in arguments))
    assert_refused(result, *(word.format(model=model) for word in words))


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--min-p", "1.5", "1.5: must be at least 0 and at most 1"),
        ("--repetition-penalty", "0", "0: must be at least 1e-09"),
        ("--num-samples", "0", "0: must be at least 1"),
        ("--ahead", "0", "0: must be at least 1"),
        ("--precision", "fp16", "invalid choice"),
    ],
)
def test_a_value_out_of_range_is_named(command: Any, model: str, flag: str, value: str, words: str) -> None:
    result = command("generate", model, "a", flag, value)
    assert result.returncode == 2
    assert f"argument {flag}: " in result.stderr
    assert words in result.stderr
