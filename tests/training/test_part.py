"""Training a part of a model on conversations: adapters, the last block, the head; and what the checkpoints hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.data.chat.chat_format import END
from gptlab.formats import checkpoint
from gptlab.formats.open_model import load_model, load_with_adapters
from gptlab.generation.cpu_decoder import CPUDecoder
from gptlab.models.gpt import GPT
from gptlab.models.lora import LoRAConfig, adapter_state, adapters, largest_change, merged
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from tests.conftest import Result
from tests.training.runs_compared import assert_same_run
from tests.training.test_fit import curve
from tests.training.test_resume import Kill, interrupt

WORDS = {"cat": "sees", "dog": "loves", "king": "fears", "queen": "day", "night": "old"}
SFT = ("data=chat", "task.answer_tokens=9", "data.val_fraction=0.2", "trainer=cpu", "data.batch_size=6")
SHORT = ("trainer.max_steps=7", "trainer.val_every=3", "trainer.log_every=1", "optim.lr=1e-2", "model.dropout=0.1")
LONG = ("trainer.max_steps=200", "trainer.val_every=200", "schedule=constant", "optim.lr=2e-2", "optim.weight_decay=0")
LORA = ("lora.rank=3", "lora.dropout=0.2", "lora.targets=[q,v,c_fc]")


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [{"prompt": prompt, "completion": answer} for _ in range(5) for prompt, answer in WORDS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def untied(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny run whose head is not its embedding."""
    run_dir = tmp_path_factory.mktemp("runs") / "untied"
    run(run_dir, "model.tied=false")
    return run_dir


@pytest.fixture(scope="session")
def tune(compose: Any, trained: Path, chats: Path) -> Any:
    """tune(run_dir, *overrides) fine-tunes the model of `trained`, or that of `base`, on `chats`."""
    from gptlab.training.fit import fit

    def tune(run_dir: Path, *overrides: str, base: str | Path = trained, resume: bool = False) -> dict[str, Any]:
        shape = ("model=pretrained", "tokenizer=pretrained", f"init_from={base}", f"data.path={chats}")
        return fit(compose(*SFT, *shape, *overrides), run_dir, resume)

    return tune


def last(run_dir: Path) -> GPT:
    model = load_with_adapters(run_dir / "checkpoints" / "last.ckpt")[0]
    assert isinstance(model, GPT)
    return model


def tokens(count: int) -> Tensor:
    return torch.randint(count, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def adapted(tune: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of adapters; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "adapted"
    tune(run_dir, *SHORT, *LORA)
    return run_dir


@pytest.fixture(scope="session")
def learned(tune: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters that knows the answers by heart."""
    run_dir = tmp_path_factory.mktemp("runs") / "learned"
    tune(run_dir, *LONG, "lora.rank=4", "lora.targets=[c_attn,attn.c_proj,c_fc,mlp.c_proj]")
    return run_dir


def test_adapters_learn_to_answer_and_to_stop(learned: Path, trained: Path) -> None:
    """New tokens begin alike: with their rows as frozen as the others, <|end|> could not be told from <|user|>."""
    summary = read_json(learned / "summary.json")
    assert summary["val/stop_rate"] == summary["val/accuracy"] == 1
    before, after = load_model(trained)[0], load_model(learned)[0]
    known = before.config.vocab_size
    assert isinstance(after, GPT)
    assert isinstance(before, GPT)
    assert torch.equal(after.wte.weight[:known], before.wte.weight)
    assert after.lm_head.weight is after.wte.weight
    assert len(after.wte.weight[known:].unique(dim=0)) == 5
