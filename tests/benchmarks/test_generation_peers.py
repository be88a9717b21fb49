"""The programs that we measure against compute what our model does, with its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptlab import models
from gptlab.benchmarks import generation_files
from gptlab.benchmarks.generation_peers import PEERS
from gptlab.models.gpt_config import GPTConfig
from gptlab.system.errors import UserError
from tests.formats.gguf_models import LLAMA, OURS, a_model

PACKAGES = {  # where there is more than one, or another name
    "llama.cpp": ("llama_cpp", "gguf"),
    "onnxruntime": ("onnxruntime", "onnxscript"),
    "openvino": ("openvino", "nncf", "onnxscript"),
}
LACK = {"fp32": 1e-3, "int8": 0.3}  # of a logit, where any other token would lack 3 on average
ENDS = 2  # the last ids, which end a text or fill it up: some programs do not draw them


@pytest.mark.parametrize(
    ("peer", "weights"),
    [(name, weights) for name, peer in PEERS.items() for weights in LACK if weights in peer.weights],
)
def test_a_program_draws_our_greedy_tokens(tmp_path: Path, peer: str, weights: str) -> None:
    for package in PACKAGES.get(peer, (peer,)):
        pytest.importorskip(package, reason=f"{package} is not installed: {peer} is only measured against")
    tokenizer = OURS["byte"]()
    ours = a_model(tokenizer, **LLAMA, tied=False)
    generation_files.write_for(PEERS[peer].format, ours, tokenizer, tmp_path / "model", weights)
    draw = PEERS[peer].load(tmp_path / "model", weights, 1)
    for rows, length, count in ((1, 4, 40), (3, 20, 12), (2, 1, 1)):
        idx = torch.randint(256 - ENDS, (rows, length), generator=torch.Generator().manual_seed(length))
        drawn = torch.tensor(draw(idx.tolist(), count))
        assert drawn.shape == (rows, count)
        assert count == 1 or len(drawn.unique()) > 5
        with torch.no_grad():
            logits = ours(torch.cat((idx, drawn), dim=1))[:, length - 1 : -1]
        lacks = logits[..., :-ENDS].amax(dim=-1) - logits.gather(-1, drawn[..., None])[..., 0]
        assert lacks.max() < LACK[weights]


def test_a_model_without_keys_and_values_is_refused(tmp_path: Path) -> None:
    model = models.build(GPTConfig(256, block_size=8, n_layer=1, n_head=1, n_embd=8, attention="none"))
    with pytest.raises(UserError, match=r"no graph with keys and values: .*attention=none.*; use --against loop"):
        generation_files.write_for("onnx", model, OURS["byte"](), tmp_path / "model", "fp32")
    assert not (tmp_path / "model").exists()


def test_openvino_attends_where_it_keeps_keys_and_values(tmp_path: Path) -> None:
    """Else it computes the same, but slower than it can."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: it is only measured against")
    from gptlab.benchmarks import graph_peers

    generation_files.write_for("onnx", a_model(OURS["byte"](), **LLAMA), OURS["byte"](), tmp_path / "model", "fp32")
    path = graph_peers.write_for_openvino(tmp_path / "model", "fp32")
    operations = openvino.Core().compile_model(path, "CPU").get_runtime_model().get_ops()
    kinds = [each.get_rt_info()["layerType"].astype(str) for each in operations]
    assert kinds.count("ScaledDotProductAttention") == 2
    assert "Softmax" not in kinds
