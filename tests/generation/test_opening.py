"""Models that generate without torch: what they are, and that they are those that torch would have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlab.data.tokenizers import CharTokenizer
from gptlab.formats.array_model import open_arrays
from gptlab.formats.checkpoint import describe, save_checkpoint
from gptlab.formats.description import KEY, PREFIX, ModelInfo
from gptlab.formats.open_model import open_model
from gptlab.formats.writing import write_hf
from gptlab.generation.opening import open_to_generate
from gptlab.models import Bigram, BigramConfig, quantised
from gptlab.models.arrays import ArrayGPT, as_bf16, expected_shapes
from gptlab.models.packed import Packed
from gptlab.models.torch_arrays import arrays_of
from gptlab.models.weights import parameters
from gptlab.system import machine
from gptlab.system.errors import UserError
from tests.generation.contexts import check_opens_with_torchs_logits
from tests.generation.test_cpu_decoder import needs_library
from tests.models.test_switches import ROWS, Row, V, each, lively

TOKENIZER = CharTokenizer("".join(map(chr, range(97, 97 + V))))


def saved(path: Path, network: Any, **about: Any) -> Path:
    described = describe(network, TOKENIZER, {}, None, 7, {"val/loss": 1.5}) | about
    save_checkpoint({KEY: described, "state_dict": {PREFIX + k: v for k, v in network.state_dict().items()}}, path)
    return path


@each(ROWS)
def test_names_and_shapes_are_torchs(row: Row) -> None:
    model = lively(**row)
    assert expected_shapes(model.config) == {name: tuple(each.shape) for name, each in parameters(model).items()}


@each([row for row in ROWS if row["attention"] != "none"])
def test_a_checkpoint_as_arrays_is_the_model_that_torch_opens(row: Row, tmp_path: Path) -> None:
    model = lively(**row).eval()
    found = open_arrays(str(saved(tmp_path / "m.ckpt", model)))
    assert found is not None
    expected = open_model(str(tmp_path / "m.ckpt"))
    assert found.tokenizer.to_dict() == expected.tokenizer.to_dict()
    assert found.info == expected.info
    assert found.model.config == expected.model.config
    state = parameters(expected.model)
    assert found.model.weights.keys() == state.keys()
    assert all(np.array_equal(found.model.weights[name], state[name].numpy()) for name in state)


@needs_library
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("fields", [{}, {"tied": True, "pos": "rope", "norm": "rmsnorm"}, {"logit_softcap": 3.0}])
def test_each_precision_has_the_logits_of_the_model_that_torch_opens(
    precision: str, fields: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_opens_with_torchs_logits(str(saved(tmp_path / "m.ckpt", lively(**fields))), precision, monkeypatch)


def test_bf16_is_rounded_as_torch_rounds() -> None:
    numbers = torch.randint(-(1 << 31), 1 << 31, (100_000,), generator=torch.Generator().manual_seed(1))
    floats = numbers.int().view(torch.float32)
    found = torch.from_numpy(as_bf16(floats.numpy()).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(found.isnan(), floats.isnan())
    assert torch.equal(found.nan_to_num(), floats.bfloat16().nan_to_num())


def test_a_quantised_model_is_the_one_of_torch(tmp_path: Path) -> None:
    opened = open_to_generate(str(saved(tmp_path / "m.ckpt", lively())), "cpu", "int4", is_compiled=False)
    expected = arrays_of(quantised.quantise(lively().eval(), 4))
    assert expected is not None
    if isinstance(opened.model, ArrayGPT):
        for name, weight in opened.model.weights.items():
            other = expected.weights[name]
            if isinstance(weight, Packed):
                assert isinstance(other, Packed)
                assert np.array_equal(weight.data, other.data)
                assert np.array_equal(weight.scales, other.scales)
            else:
                assert np.array_equal(weight, other)


def test_weights_that_bits_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = lively()
    with torch.no_grad():
        model.h[0].mlp.c_fc.weight[3, 2] = float("nan")
    path = str(saved(tmp_path / "m.ckpt", model))
    with pytest.raises(
        UserError, match=r"--precision int8: .*m\.ckpt: h\.0\.mlp\.c_fc\.weight has numbers that are infin"
    ):
        open_to_generate(path, "cpu", "int8", is_compiled=False)


def other_kinds(path: Path) -> dict[str, Path]:
    model = lively()
    cut = path / "cut.ckpt"
    cut.write_bytes(saved(path / "whole.ckpt", model).read_bytes()[:-500])
    half = path / "half.ckpt"
    half.write_bytes((path / "whole.ckpt").read_bytes().replace(b"sha256:", b"sha257:"))
    return {
        "bigram": saved(path / "bigram.ckpt", Bigram(BigramConfig(V))),
        "double": saved(path / "double.ckpt", lively().double()),
        "transposed": saved(path / "t.ckpt", transposed(lively())),
        "adapters": saved(path / "adapters.ckpt", model, adapters={}),
        "head": saved(path / "head.ckpt", model, model={"name": "gpt", "head": {}}),
        "old": saved(path / "old.ckpt", model, format=1),
        "misfit": saved(
            path / "misfit.ckpt", model, model=describe(lively(n_layer=1), TOKENIZER, {}, None, 1, {})["model"]
        ),
        "cut": cut,
        "without its seal": half,
        "nothing": path / "nothing",
    }


def transposed(model: Any) -> Any:
    weight = model.h[0].mlp.c_fc.weight
    weight.data = weight.data.T.contiguous().T
    return model


def test_what_is_more_or_broken_is_left_to_torch(tmp_path: Path) -> None:
    for kind, path in other_kinds(tmp_path).items():
        assert open_arrays(str(path)) is None, kind
    assert open_arrays(str(tmp_path / "whole.ckpt")) is not None


def exported(folder: Path, network: Any) -> Path:
    folder.mkdir()
    write_hf(network, TOKENIZER, ModelInfo(folder, None, {}, {}, None, "gptlab run"), folder)
    return folder


@needs_library
@pytest.mark.parametrize("write", [saved, exported])
def test_generating_imports_no_torch(write: Callable[[Path, Any], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "m.ckpt", lively(vocab_size=V))
    code = "import sys; sys.modules['torch'] = None; from gptlab.generate import main; main(sys.argv[1:])"
    arguments = [path.name, "abc", "--max-new-tokens", "5", "--precision", "int8", "--device", "cpu", "--seed", "3"]
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("abc")
    assert "8 bits" in done.stderr


@pytest.mark.parametrize("there", [True, False])
def test_a_driver_of_an_accelerator_asks_for_torch(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "m.ckpt", lively())
    (tmp_path / "driver").touch()
    monkeypatch.setattr(machine, "DRIVERS", (str(tmp_path / ("driver" if there else "none")),))
    assert machine.may_have_accelerator() == (there or sys.platform != "linux")
    opened = open_to_generate(str(tmp_path / "m.ckpt"), "auto", "fp32", is_compiled=False)
    assert not (there and isinstance(opened.model, ArrayGPT))
