"""A few tokens through our own library have the logits that torch gives them, and without a compiler torch does it."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.generation import c_build, cpu_decoder, cpu_library
from gptlab.generation.cpu_decoder import CPUDecoder
from gptlab.generation.cpu_library import load_library, ready_library
from gptlab.generation.decoding import generate
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.system import threads
from tests.generation.contexts import context_for, is_ours, logits_of
from tests.models.test_switches import ROWS, Row, T, V, each, lively

needs_library = pytest.mark.skipif(load_library() is None, reason="no C compiler here")


def texts(*lengths: int, seed: int = 3) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (length,), generator=draw).tolist() for length in lengths]


def assert_same(model: Any, prompts: list[list[int]], count: int, dtype: torch.dtype) -> None:
    """Check that the logits are about as close to fp64's as torch's are, within a block and beyond."""
    model = model.to(dtype).eval()
    ours, torchs = (context_for(model, prompts, count, cache=cache) for cache in (True, False))
    assert is_ours(ours)
    exact = context_for(copy.deepcopy(model).double(), prompts, count, cache=False)
    errors = torch.zeros(2)
    for _ in range(count):
        logits = logits_of(exact)
        errors += torch.tensor([(logits_of(context).double() - logits).abs().max() for context in (ours, torchs)])
        for context in (ours, torchs, exact):
            context.append(logits[:, -1].argmax(dim=-1))
    assert errors[0] < 2 * errors[1] + count * (1e-5 if dtype == torch.float32 else 5e-3)


@needs_library
@each([row for row in ROWS if row["attention"] != "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_torchs_whatever_the_switches(row: Row, dtype: torch.dtype) -> None:
    assert_same(lively(**row), texts(4, 1, 9), 9, dtype)


@needs_library
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_embd": 1, "n_head": 1},
        {"n_embd": 7, "n_head": 7},
        {"n_embd": 33, "n_head": 3},
        {"n_embd": 65, "n_head": 5, "vocab_size": 129},
        {"n_embd": 130, "n_head": 2, "n_inner": 257, "vocab_size": 1},
        {"n_embd": 6, "n_head": 3, "head_dim": 50, "n_inner": 7, "n_kv_head": 1, "pos": "rope llama3"},
        {"n_embd": 65, "n_head": 5, "head_dim": 2, "pos": "rope linear", "qk_norm": True, "window": 3},
        {"n_embd": 192, "n_head": 1, "pos": "rope", "norm": "rmsnorm", "mlp": "swiglu"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_torchs_whatever_the_sizes(sizes: Row, dtype: torch.dtype) -> None:
    assert_same(lively(**sizes), [[0], [0, 0, 0]], 9, dtype)


def trail(prompts: list[list[int]], count: int = T + 5, **fields: Any) -> list[Tensor]:
    """The logits of each step, (B, V), on random tokens that differ between rows."""
    model = lively(n_embd=192, n_head=3, vocab_size=257, **fields).eval()
    context = context_for(model, prompts, count)
    found = []
    for step in range(count):
        found.append(logits_of(context)[:, 0])
        context.append([(7 * step + row[0]) % V for row in context.rows])
    return found


@needs_library
@pytest.mark.parametrize("pos", ["learned", "alibi", "rope"])
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(
    pos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_decoder, "SINGLE_THREAD_WEIGHTS", 0)
    prompts = texts(3, 1, 1, 4, 2)
    together = trail(prompts, T - 4, pos=pos)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for i, prompt in enumerate(prompts):
                for a, b in zip(together, trail([prompt], T - 4, pos=pos), strict=True):
                    assert torch.equal(a[i], b[0])
    finally:
        torch.set_num_threads(threads)


def share_together(teamwork: cpu_decoder.Teamwork, passes: int, together: float, alone: float) -> float:
    """The share of passes with all threads, where a pass takes so many seconds with all threads and with one."""
    chosen = []
    for _ in range(passes):
        chosen.append(teamwork.together())
        teamwork.took(together if chosen[-1] else alone)
    return sum(chosen) / passes


def test_passes_run_on_one_thread_while_that_is_faster() -> None:
    teamwork = cpu_decoder.Teamwork()
    assert share_together(teamwork, 100, together=1, alone=2) == 0.98  # quiet: one trial
    assert share_together(teamwork, 5000, together=1, alone=2) > 0.995
    share_together(teamwork, 1100, together=10, alone=4)  # busy, which the next trial sees
    assert share_together(teamwork, 5000, together=10, alone=4) < 0.005
    share_together(teamwork, 1100, together=1, alone=2)  # and quiet again
    assert share_together(teamwork, 5000, together=1, alone=2) > 0.995


@needs_library
@pytest.mark.parametrize("slower", [True, False])
def test_text_is_the_same_whichever_way_is_faster(slower: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads join and leave in the middle of a text."""
    monkeypatch.setattr(cpu_decoder, "SINGLE_THREAD_WEIGHTS", 0)
    alone = trail(texts(1), T - 4)
    monkeypatch.setattr(cpu_decoder, "WARM_UP", 1)
    monkeypatch.setattr(cpu_decoder, "FEWEST_BETWEEN", 1)
    now = itertools.count()
    monkeypatch.setattr(cpu_decoder.time, "perf_counter", lambda: next(now) ** 2 * (-1 if slower else 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(a, b) for a, b in zip(alone, trail(texts(1), T - 4), strict=True))
    finally:
        torch.set_num_threads(threads)


@needs_library
def test_a_prompt_is_read_in_as_few_passes_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    call = CPUDecoder.__call__
    monkeypatch.setattr(
        CPUDecoder, "__call__", lambda self, ids, *where: read.append(len(ids)) or call(self, ids, *where)
    )
    monkeypatch.setattr(cpu_decoder, "MOST", 16)
    context = context_for(lively(block_size=64).eval(), texts(16 + 16 + 3), 2)
    logits_of(context)
    context.append([1])
    logits_of(context)
    assert read == [16, 16, 3, 1]


@needs_library
@pytest.mark.parametrize("length", [15, 16, 17, 18, 33, 36])
def test_the_last_tokens_are_in_one_pass(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a draft's proposals are read after a long prompt."""
    monkeypatch.setattr(cpu_decoder, "MOST", 16)
    model, prompts = lively(block_size=64).eval(), texts(length)
    found, expected = (logits_of(context_for(model, prompts, 1, ahead=5, cache=cache), 5) for cache in (True, False))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_library
def test_no_gradient_goes_through_and_autocast_makes_nothing_less_exact() -> None:
    model = lively().eval()
    context = context_for(model, texts(5), 1)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = logits_of(context)
    assert is_ours(context)
    assert not logits.requires_grad
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[0, 0], model(torch.tensor(context.rows))[0, -1], rtol=1e-5, atol=1e-5)


@needs_library
def test_another_default_type_changes_no_number() -> None:
    """As in training with precision=bf16_true. The sizes are small: where it goes wrong, no memory is overwritten."""
    model, prompts = lively(vocab_size=13).eval(), [[3]]
    expected = logits_of(context_for(model, prompts, 1))
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        found = logits_of(context_for(model, prompts, 1))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, expected)


def test_other_types_and_devices_are_torchs() -> None:
    context = context_for(lively().double().eval(), texts(5), 1)
    assert not is_ours(context)
    assert logits_of(context).dtype == torch.float64


# Where the library comes from


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a process that has not loaded the library yet, which is built in a hurry."""
    monkeypatch.setattr(c_build, "FLAGS", tuple(flag.replace("-O3", "-O0") for flag in c_build.FLAGS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load_library.cache_clear()
    yield tmp_path
    load_library.cache_clear()


def assert_torch_generates() -> None:
    context = context_for(lively().eval(), texts(4), 5)
    assert not is_ours(context)
    assert len(list(generate(context, 5, Sampling(), [RandomNumbers(0)]))) == 5


def test_without_a_compiler_torch_does_the_work(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert_torch_generates()
    assert not list(fresh.rglob("*.so"))


def test_on_other_systems_torch_does_the_work(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library.sys, "platform", "darwin")
    assert_torch_generates()


@pytest.mark.parametrize("code", ["exit 1", "exit 0"])
def test_with_a_broken_compiler_torch_does_the_work_and_says_so(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    compiler = fresh / "cc"
    compiler.write_text(f"#!/bin/sh\n{code}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    assert_torch_generates()
    assert not list(fresh.rglob("*.so"))
    (said,) = (record.getMessage() for record in caplog.records)
    assert "cannot be built" in said
    assert "mend the compiler" in said


@needs_library
def test_the_library_is_made_once_for_all_runs(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library() is not None
    (made,) = (fresh / "cache" / "gptlab").iterdir()
    assert made.suffix == ".so"  # and nothing of the work
    load_library.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert load_library() is not None


@needs_library
def test_a_cache_folder_that_cannot_be_written_is_done_without(fresh: Path) -> None:
    (fresh / "cache").write_text("a file")
    assert load_library() is not None
    assert {*fresh.iterdir()} == {fresh / "cache"}  # it is in memory, and no file of it is left


@needs_library
@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_library_that_was_cut_off_is_built_anew(fresh: Path, size: int) -> None:
    assert load_library() is not None
    (made,) = (fresh / "cache" / "gptlab").iterdir()
    (fresh / "cut").write_bytes(made.read_bytes()[:size])
    (fresh / "cut").replace(made)  # the one that is in memory keeps its file
    load_library.cache_clear()
    assert not cpu_library.is_whole(made)
    assert load_library() is not None
    assert cpu_library.is_whole(made)


@needs_library
def test_another_processor_has_a_library_of_its_own(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for flags in ("flags: sse2", "flags: sse2 avx2"):
        monkeypatch.setattr(cpu_library, "processor_features", lambda flags=flags: flags)
        names.add(cpu_library.build_library("cc" if shutil.which("cc") else "gcc", ExitStack()).name)
    assert len(names) == 2


AVX2 = "flags: sse2 avx2 bmi2 f16c fma"
AVX512 = f"{AVX2} avx512bw avx512cd avx512dq avx512f avx512vl"


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("x86_64", "flags: sse2 avx2", "x86-64"),
        ("x86_64", AVX2, "x86-64-v3"),
        ("x86_64", AVX512, "x86-64-v4"),
        ("x86_64", f"{AVX512} avx512_vnni", "x86-64-v4-vnni"),
        ("aarch64", "Features: fp asimd", "armv8"),
        ("aarch64", "Features: fp asimd asimddp", "armv8.2-dotprod"),
        ("riscv64", "isa: rv64", None),
    ],
)
def test_of_a_wheels_libraries_the_best_for_the_processor_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, features: str, name: str | None
) -> None:
    monkeypatch.setattr(cpu_library, "processor_features", lambda: features)
    monkeypatch.setattr(cpu_library.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu_library, "READY", tmp_path)
    assert ready_library() is None
    for level in c_build.LEVELS.get(machine, ()):
        (tmp_path / f"{level.name}.so").touch()
    found = ready_library()
    assert (found and found.stem) == name


def test_a_library_that_does_not_load_is_done_without(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "broken.so").touch()
    monkeypatch.setattr(cpu_library, "ready_library", lambda: fresh / "broken.so")
    assert_torch_generates()


# Its threads


@needs_library
def test_callers_at_the_same_time_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_decoder, "SINGLE_THREAD_WEIGHTS", 0)
    monkeypatch.setattr(cpu_decoder.threads, "in_use", lambda: 3)
    prompts = texts(5, 3, 7, 2)
    expected = [trail([prompt], T - 7) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(lambda prompt: trail([prompt], T - 7), prompts), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@needs_library
def test_a_child_of_fork_has_threads_of_its_own(tmp_path: Path) -> None:
    code = """
import os
from gptlab.generation import cpu_decoder
from gptlab.generation.context import open_context
from tests.models.test_switches import lively

cpu_decoder.SINGLE_THREAD_WEIGHTS = 0
cpu_decoder.threads.in_use = lambda: 2
context = open_context(lively().eval(), [[1, 2, 3]], 1)
expected = context.logits().tobytes()
if not (child := os.fork()):
    context.take_back(0)
    context.lengths = [0]
    os._exit(int(context.logits().tobytes() != expected))
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, timeout=100)
    assert done.returncode == 0


def test_threads_are_those_of_torch_or_as_many_as_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.in_use() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    for wanted, count in (("3", 3), ("2,1", 2), ("", threads.cores()), ("0", threads.cores()), ("x", threads.cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert threads.in_use() == count


def test_threads_are_not_counted_anew_for_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((5, 6))
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "as many as there are")
    monkeypatch.setattr(threads, "cores", lambda: next(counts))
    assert [threads.in_use(), threads.in_use()] == [5, 5]
