"""Figures that fit together, processes that end, and a plain loop that is what it says."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import queue
import re
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab import bench, models
from gptlab.benchmarks import bare_loop, comparison, generation_files, gpu, plain_loop
from gptlab.benchmarks.alternation import in_another_process
from gptlab.benchmarks.gpu import Measurement
from gptlab.benchmarks.measured_run import OPTIM, PARTS
from gptlab.formats import checkpoint
from gptlab.models.gpt import GPT
from gptlab.models.gpt_config import GPTConfig
from gptlab.runs.compose import compose
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training.settings import from_config
from tests.conftest import TINY, Bell
from tests.generation.test_cpu_decoder import needs_library
from tests.test_cli import assert_refused

TOKENS = 6 * 17  # of a step of TINY
QUICK = ("--steps", "3", "--rounds", "2")


@pytest.fixture
def overrides(text_file: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Those of the tiny run, whose processes have a thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return (f"data.path='{text_file}'", f"data.cache_dir={cache_dir}", *TINY)


class Turns:
    """What a side of a comparison and its parent tell each other, in one process; the methods are the parent's."""

    def __init__(self) -> None:
        self.orders, self.answers = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()

    def send(self, **answer: Any) -> None:
        self.answers.put(answer)

    def receive(self) -> Any:
        return self.orders.get()


class Here(comparison.Child):
    """A side in a thread of this process, which has imported all that one of its own would import."""

    def __init__(self, name: str, words: list[str]) -> None:
        side = {comparison.BARE: bare_loop.make_bare_steps, comparison.SAMPLING: generation_files.write_model}
        self.name, self.turns = name, Turns()
        self.thread = threading.Thread(target=side[name], args=(from_config(compose(words)), self.turns))
        self.thread.start()

    def send(self, **order: Any) -> None:
        self.turns.orders.put(order)

    def receive(self) -> Any:
        return self.turns.answers.get(timeout=60)

    def __exit__(self, *args: Any) -> None:
        self.turns.orders.put(None)
        self.thread.join()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our sides are threads, but for a whole run, which handles signals."""
    apart = comparison.our_child

    def our_child(name: str, words: list[str], folder: Path) -> comparison.Child:
        return apart(name, words, folder) if name == comparison.RUN else Here(name, words)

    monkeypatch.setattr(comparison, "our_child", our_child)


def finite(values: Any) -> bool:
    """Whether all numbers in it are, and are not negative."""
    if isinstance(values, dict):
        return all(map(finite, values.values()))
    if isinstance(values, list):
        return all(map(finite, values))
    return not isinstance(values, float) or (math.isfinite(values) and values >= 0)


def test_a_run_beside_the_plain_loop(command: Any, overrides: tuple[str, ...], tmp_path: Path) -> None:
    accumulated = ("data.micro_batch_size=2", "model.dropout=0.3")
    result = command("bench", *overrides, *accumulated, "--against", "loop", *QUICK, "--json", "found.json")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert "files: found.json" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert finite(found)
    assert found["tokens_per_step"] == TOKENS
    assert list(found["sides"]) == ["gptlab", "loop"]
    for one in found["sides"].values():
        step = one["step_seconds"]
        assert step["p10"] <= step["median"] <= step["p90"]
        assert one["tokens_per_sec"] == pytest.approx(TOKENS / step["median"])
        assert one["mfu"] == pytest.approx(
            one["tokens_per_sec"] * found["flops_per_token"] / found["measured_peak_flops"]
        )
        assert len(one["round_seconds_per_step"]) == 2
        assert one["memory_bytes"] >= one["memory_before_bytes"] > 0
        assert (one["threads"], one["processes"]) == (1, 1)
        assert "compile_seconds" not in one
    assert list(found["sides"]["gptlab"]["shares"]) == list(PARTS)
    assert all(share > 0 for share in found["sides"]["gptlab"]["shares"].values())
    assert sum(found["sides"]["gptlab"]["shares"].values()) == pytest.approx(1)
    ours, theirs = (one["round_seconds_per_step"] for one in found["sides"].values())
    assert found["time_ratio"] == comparison.ratio(ours, theirs)
    # The plain loop's user has no Lightning in memory.
    assert found["sides"]["loop"]["memory_before_bytes"] < found["sides"]["gptlab"]["memory_before_bytes"]


def test_what_is_done_in_another_process_comes_back_or_fails_as_here() -> None:
    assert in_another_process(os.getpid) != os.getpid()
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there'"):
        in_another_process(importlib.import_module, "not_there")


def test_a_ratio_is_of_rounds_and_says_how_sure_it_is() -> None:
    ours, theirs = [6.0, 1.0, 5.0, 2.0, 4.0, 3.0], [2.0] * 6
    assert comparison.ratio(ours, theirs) == {"median": 1.75, "interval": (0.5, 3.0), "min": 0.5, "max": 3.0}
    assert comparison.ratio(ours[:5], theirs[:5])["interval"] is None


@pytest.mark.usefixtures("here")
def test_a_compiled_run_beside_a_bare_loop(command: Any, overrides: tuple[str, ...]) -> None:
    result = command(
        "bench",
        *overrides,
        "optim=muon",
        "model.n_layer=1",
        "data.micro_batch_size=auto",
        "compile.backend=aot_eager",
        "--against",
        "bare",
        *QUICK,
    )
    assert result.returncode == 0, result.stderr
    rows = {line[:40].strip(): line[40:].split() for line in result.stdout.splitlines() if line.strip()}
    for heading in ("step, median", "tokens/s", "memory, peak", "share of optimizer", "processes x threads"):
        assert rows[heading]
    compiled = rows["of it compiling, from an empty cache"]
    assert [unit for unit in compiled if unit == "s"] == ["s", "s"]
    assert "time of gptlab / bare: " in result.stdout


def test_a_bare_loop_is_the_runs_own_training(run: Any, compose: Any, tmp_path: Path) -> None:
    words = ("optim=muon", "data.micro_batch_size=3", "data.order=epochs", "model.dropout=0.1", "optim.grad_clip=0.1")
    run(tmp_path, *words)
    module, step = bare_loop.bare_step(compose(*TINY, *words))
    for _ in range(7):
        step()
    for name, weight in checkpoint.load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")[0].named_parameters():
        torch.testing.assert_close(module.model.get_parameter(name), weight, atol=0, rtol=0)


def test_several_processes_are_one_run(command: Any, overrides: tuple[str, ...]) -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    result = command("bench", *overrides, *two, *QUICK, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert finite(found)
    run = found["sides"]["gptlab"]
    assert (run["processes"], run["threads"], found["tokens_per_step"]) == (2, 1, TOKENS)
    assert run["memory_before_bytes"] > 2 * 100e6  # of both
    assert "time_ratio" not in found


@pytest.mark.usefixtures("here")
def test_generation_beside_a_loop_without_a_cache(command: Any, overrides: tuple[str, ...]) -> None:
    result = command("bench", "--sampling", "--json", *overrides, "--against", "loop", "--steps", "5", "--rounds", "2")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert finite(found)
    assert (found["prompt_tokens"], found["new_tokens"]) == (8, 5)
    assert list(found["batches"]) == ["1", "16"]
    for each in found["batches"].values():
        for name in ("gptlab", "loop"):
            assert 0 < each[name]["min"] <= each[name]["tokens_per_sec"] <= each[name]["max"]
        assert each["gptlab"]["prefill_seconds"] > 0
        assert each["time_ratio"]["min"] <= each["time_ratio"]["median"] <= each["time_ratio"]["max"]


@pytest.mark.parametrize(
    ("peer", "weights", "package"),
    [
        ("transformers", "fp32", "transformers"),
        ("ctranslate2", "int8", "ctranslate2"),
        ("llama.cpp", "int4", "llama_cpp"),
        ("onnxruntime", "int8", "onnxruntime"),
        ("openvino", "bf16", "openvino"),
    ],
)
@pytest.mark.usefixtures("here")
def test_generation_beside_another_program(
    command: Any, overrides: tuple[str, ...], peer: str, weights: str, package: str
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed: it is only measured against")
    shape = ("arch=gpt2", "model.n_head=2", "model.n_embd=64", "tokenizer=byte")
    flags = ("--steps", "4", "--rounds", "2", "--batch-sizes", "1", "3", "--prompt", "6", "--weights", weights)
    result = command("bench", "--sampling", "--json", *overrides, *shape, "--against", peer, *flags)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert finite(found)
    assert (found["prompt_tokens"], found["new_tokens"], found["weights"]) == (6, 4, weights)
    assert list(found["batches"]) == ["1", "3"]
    assert found["sides"]["gptlab"]["threads"] == found["sides"][peer]["threads"]
    assert found["sides"][peer]["resident_bytes"] > 10e6
    for each in found["batches"].values():
        assert {"time_ratio", "prefill_ratio"} <= {*each}
        for name in ("gptlab", peer):
            assert 0 < each[name]["min"] <= each[name]["tokens_per_sec"] <= each[name]["max"]
            assert each[name]["prefill_seconds"] > 0


@pytest.mark.parametrize(("first", "known"), [(0.5, True), (1.0, False), (1.5, False)])
def test_the_rest_of_a_text_is_compared_where_it_took_time(first: float, known: bool) -> None:
    rounds = {name: [{"total": 1.0, "tokens": 4, "seconds": [0.5]}] * 2 for name in ("gptlab", "llama.cpp")}
    found = comparison.batch_figures(1, rounds, {"gptlab": [9.0, 0.5, 0.5], "llama.cpp": [9.0, 0.5, first]})
    assert ("decoding_ratio" in found) == known
    assert found["time_ratio"]["median"] == 1


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"device": "cuda"},
            "--against openvino: is measured on a CPU, not on cuda; add trainer=cpu, or use --against loop",
        ),
        (
            {"weights": "int4"},
            "--against openvino has no weights of int4 here: use --weights with one of fp32, bf16, int8",
        ),
        ({"steps": 9}, "--steps 9: a text of openvino ends at the block_size, 16; use 8"),
    ],
)
def test_what_a_program_cannot_do_is_refused(changed: dict[str, Any], words: str) -> None:
    case: dict[str, Any] = {"device": "cpu", "weights": "int8", "steps": 8} | changed
    about = {"plain": {"device": case["device"]}, "block_size": 16}
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        comparison.check_peer("openvino", case["weights"], about, 8, case["steps"])


@pytest.mark.usefixtures("here")
def test_weights_of_few_bits_are_measured_alone_too(command: Any, overrides: tuple[str, ...]) -> None:
    flags = ("--steps", "3", "--rounds", "1", "--weights", "int8", "--batch-sizes", "2")
    result = command("bench", "--sampling", "--json", *overrides, *flags)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (list(found["sides"]), list(found["batches"]), found["weights"]) == (["gptlab"], ["2"], "int8")
    assert set(found["sides"]["gptlab"]) == {
        *("memory_bytes", "memory_before_bytes", "resident_bytes", "threads", "processes")
    }


@needs_library
@pytest.mark.usefixtures("here")
def test_our_memory_is_that_of_generating_without_torch(command: Any, overrides: tuple[str, ...]) -> None:
    flags = ("--steps", "3", "--rounds", "1", "--batch-sizes", "2")
    result = command("bench", "--sampling", "--json", *overrides, *flags)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["sides"]["gptlab"]
    assert 10e6 < found["memory_before_bytes"] <= found["memory_bytes"] < 150e6  # torch alone has more


@pytest.mark.usefixtures("here")
def test_a_program_that_is_not_there_is_one_message(
    command: Any, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "ctranslate2.py").write_text("raise ImportError('no ctranslate2')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    shape = ("arch=gpt2", "tokenizer=byte", "--prompt", "6", "--steps", "2")
    result = command("bench", "--sampling", *overrides, *shape, "--against", "ctranslate2")
    assert_refused(result, "--against ctranslate2: no ctranslate2; install it, or name the Python that has it")
    result = command("bench", "--sampling", *overrides, *shape[:-1], "900", "--against", "transformers")
    assert_refused(result, "--steps 900: a text of transformers ends at the block_size, 17; use 11")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "int8"], ["--weights is for --sampling: give that, too"]),
        (["--prompt", "3"], ["--prompt is for --sampling"]),
        (["--batch-sizes", "3"], ["--batch-sizes is for --sampling"]),
        (["--against", "llama.cpp"], ["--against llama.cpp generates text: give --sampling, too"]),
        (["--sampling", "--against", "loop", "--weights", "int8"], ["--weights int8: --against loop has none"]),
        (["--sampling", "--python", "x"], ["--python x is for another program: give --against transformers | "]),
        (["--sampling", "--against", "llama.cpp", "--python", "x"], ["--python x: no such file"]),
        (["model=gpt99"], ["model=gpt99: there is no such choice", "gpt10m"]),
        (["model.n_layr=3"], ["model.n_layr: there is no such key here; did you mean model.n_layer?"]),
        (["resume=outputs/x"], ["resume: bench measures one run, which is not kept: leave it out"]),
        (["hydra.run.dir=x"], ["hydra.run.dir: bench measures one run"]),
        (["sweep=lr"], ["sweep: bench measures one run"]),
        (["--sampling", "--against", "bare"], ["--against bare is for training", "--against loop"]),
        (["--json", "none/found.json"], ["--json none/found.json: there is no folder", "make it first"]),
        (["--against", "bare", "trainer=ddp"], ["trainer.devices=auto: --against bare is one process", "loop"]),
        (["--against", "bare", "precision=fp16"], ["precision=fp16: --against bare", "precision=bf16"]),
        (["--sampling", "precision=fp16"], ["precision=fp16: --sampling", "precision=bf16"]),
    ],
)
def test_what_is_refused_at_once(command: Any, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(command("bench", *arguments), *words)
    assert list(tmp_path.iterdir()) == []


def test_what_torchrun_has_started_is_refused(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert_refused(command("bench"), "bench starts its processes itself: leave out torchrun")


@pytest.mark.parametrize("flags", [("--steps", "0"), ("--rounds", "x"), ("--against", "him"), ("--stps", "3")])
def test_flags_are_checked(command: Any, flags: tuple[str, ...]) -> None:
    result = command("bench", *flags)
    assert result.returncode == 2
    assert flags[0] in result.stderr


def test_what_a_side_refuses_is_one_message(command: Any, overrides: tuple[str, ...]) -> None:
    assert_refused(command("bench", *overrides, "optim.lr=-1"), "optim.lr=-1.0: must be above 0")


WAITING = """
import pathlib, subprocess, sys
waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
other = subprocess.Popen(waits, stdin=subprocess.PIPE)
pathlib.Path("bell").write_text(f"{other.pid:9}")
sys.stdin.read()
"""  # a side that never answers, and has started another process, as one of several processes does
BENCH = f"""
import sys
from gptlab import bench
from gptlab.benchmarks import comparison
waiting = [sys.executable, "-c", {WAITING!r}]
comparison.our_child = lambda name, words, folder: comparison.Child(name, waiting, folder)
bench.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_and_leaves_nothing(
    shell: Any, number: int, code: int, tmp_path: Path, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    process = shell("-c", BENCH, "model=gpt1m")
    grandchild = bell.heard(9).strip()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr == ""
    assert not list((tmp_path / "tmp").iterdir())
    for child in (children[0], grandchild):
        while (stat := Path(f"/proc/{child}/stat")).exists() and stat.read_text().split()[2] != "Z":
            continue  # it has been killed, which takes a moment


def test_a_side_that_dies_is_named_with_its_last_words(
    command: Any, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = ["-c", "import sys; sys.exit('no more memory')"]
    monkeypatch.setattr(
        comparison, "our_child", lambda name, _, folder: comparison.Child(name, [sys.executable, *dying], folder)
    )
    assert_refused(command("bench", *overrides), "the process of gptlab has ended, with exit code 1", "no more memory")


# The plain loop


@pytest.fixture
def config() -> GPTConfig:
    return GPTConfig(vocab_size=29, block_size=13, n_layer=2, n_head=3, n_embd=33, dropout=0.0)


@pytest.mark.parametrize(
    "changes", [{}, {"pos": "rope", "n_kv_head": 1, "n_embd": 42}, {"attention": "manual", "parallel": True}]
)
def test_the_plain_model_is_ours(config: GPTConfig, changes: dict[str, Any]) -> None:
    config = GPTConfig(**asdict(config) | changes)
    torch.manual_seed(0)
    ours, theirs = GPT(config), plain_loop.PlainGPT(config)
    theirs.load_state_dict(ours.state_dict())
    idx = torch.randint(29, (5, 11))
    torch.testing.assert_close(theirs(idx), ours(idx))
    dropping = plain_loop.PlainGPT(GPTConfig(**asdict(config) | {"dropout": 0.5}))
    dropping.load_state_dict(ours.state_dict())
    assert not torch.equal(dropping(idx), dropping(idx))
    torch.testing.assert_close(dropping.eval()(idx), ours(idx))


def test_the_plain_dropout_is_in_every_place(config: GPTConfig) -> None:
    """All of it: what is left are the biases, and zeros without them."""
    model = plain_loop.PlainGPT(GPTConfig(**asdict(config) | {"dropout": 1.0 - 1e-7, "bias": False}))
    features = model.features(torch.randint(29, (5, 11)))
    assert features.count_nonzero() == 0


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_plain_loop_learns(config: GPTConfig, tmp_path: Path, accumulation: int) -> None:
    np.tile(np.arange(29, dtype=np.uint16), 101).tofile(tmp_path / "ids.bin")
    optim = dict(zip(OPTIM, (1e-2, 0.1, 0.9, 0.99, 1.0), strict=True))
    loop = plain_loop.PlainLoop(
        model=models.to_dict(config),
        ids=str(tmp_path / "ids.bin"),
        id_type="uint16",
        batch_size=6,
        accumulation=accumulation,
        optim=optim,
        schedule={"name": "cosine", "warmup_steps": 2, "decay_steps": 31, "min_ratio": 0.1},
        seed=7,
        device="cpu",
    )

    def loss() -> float:
        idx, targets = loop.batch()
        assert idx.shape == targets.shape == (6 // accumulation, 13)
        assert torch.equal(idx[:, 1:], targets[:, :-1])
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(loop.model(idx).flatten(0, 1), targets.flatten()))

    before = loss()
    for _ in range(31):
        loop.step()
    assert loss() < before / 3


def test_the_plain_model_has_the_rates_of_its_config() -> None:
    config = GPTConfig(29, block_size=7, n_layer=2, n_head=3, n_embd=33, dropout=0.3, attn_dropout=0.1)
    model, seen = plain_loop.PlainGPT(config).train(), []
    model.h[1].register_forward_pre_hook(lambda block, inputs: seen.append([drop.p for drop in inputs[1].dropouts]))
    model(torch.zeros(1, 7, dtype=torch.int64))
    model.eval()(torch.zeros(1, 7, dtype=torch.int64))
    assert seen == [[0.1, 0.3, 0.3], [0.0, 0.0, 0.0]]


def test_the_plain_generation_continues(config: GPTConfig) -> None:
    idx = torch.randint(29, (3, 7))
    text = plain_loop.generate_without_cache(plain_loop.PlainGPT(config).eval(), idx, 17)
    assert text.shape == (3, 7 + 17)
    assert torch.equal(text[:, :7], idx)


# All of a GPU


def test_what_is_measured_of_a_gpu_is_in_one_file(
    overrides: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {
        "sampling": Measurement("bench", (*overrides, "--sampling", "--steps", "2", "--rounds", "1"), 500),
        "refused": Measurement("bench", ("model.n_layr=3",), 500),
        "endless": Measurement("bench", (*overrides, "--steps", "1000000"), 0.1),
    }
    assert not gpu.run(chosen, tmp_path / "new" / "found.json")
    found = read_json(tmp_path / "new" / "found.json")
    assert list(found) == list(chosen)
    assert found["sampling"]["batches"]["1"]["gptlab"]["tokens_per_sec"] > 0
    assert "error: model.n_layr: there is no such key here" in found["refused"]["error"]
    assert "none within 0.1 seconds" in found["endless"]["error"]
    assert "sampling: measured" in capsys.readouterr().out


def test_the_time_to_a_loss_is_that_of_the_first_validation_below_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (trained / "metrics.csv").open(newline="") as file:
        validations = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert gpu.time_to_goal(trained)["seconds"] is None
    monkeypatch.setattr(gpu, "GOAL", float(validations[1]["val/loss"]))
    found = gpu.time_to_goal(trained)
    assert found["seconds"] == float(validations[1]["seconds"])
    assert found["val/loss"] == pytest.approx(float(validations[-1]["val/loss"]))


def test_all_of_a_gpu_takes_at_most_ten_minutes_and_composes() -> None:
    words = set()
    for memory in (16e9, 140e9):
        chosen = gpu.measurements(memory)
        assert sum(measurement.limit for measurement in chosen.values()) <= 600
        words |= {measurement.words for measurement in chosen.values()}
    for each in words:
        args = bench.parser().parse_intermixed_args([*each])
        assert bench.checked(args)["model"]["n_embd"] > 0


def test_without_a_gpu_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_bench"])
    with pytest.raises(SystemExit, match=r"error: no CUDA GPU is visible.*make bench"):
        gpu.main()
