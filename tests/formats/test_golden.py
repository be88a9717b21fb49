"""Files of older versions open in this one with the same results: see tests/golden/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlab.formats import checkpoint, description, open_model
from gptlab.runs import upgrades
from gptlab.system.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden"
ANSWERS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "answers.json").read_text())
PROMPT = "the old king sees a young cat."
ASKED = 8  # of the prompt's ids, the models' block size


def test_every_golden_file_has_its_answers_and_its_line() -> None:
    files = {path.name for path in GOLDEN.iterdir() if path.suffix in (".ckpt", ".safetensors")}
    assert files == set(ANSWERS)
    readme = (GOLDEN / "README.md").read_text()
    assert all(Path(name).stem in readme for name in files)


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_an_older_file_opens_and_says_what_its_own_version_said(name: str) -> None:
    model, tokenizer, info = open_model.load_model(GOLDEN / name)
    answer = ANSWERS[name]
    ids = tokenizer.encode(PROMPT).tolist()
    assert ids == answer["ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:ASKED]]))[0]
    torch.testing.assert_close(logits[[0, -1]][:, ids[:5]], torch.tensor(answer["logits"]), rtol=0, atol=1e-6)
    assert model.num_parameters() == answer["parameters"]
    assert info.step == 3


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_an_older_file_writes_text(command: Any, name: str) -> None:
    result = command("generate", str(GOLDEN / name), "the king", "--max-new-tokens", "5", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("the king")


@pytest.mark.parametrize("name", sorted(name for name in ANSWERS if name.endswith(".ckpt")))
def test_an_older_run_is_measured_on_the_text_that_it_names(command: Any, tmp_path: Path, name: str) -> None:
    content = torch.load(GOLDEN / name, weights_only=True)
    about = content[description.KEY]
    places = {"path": str(GOLDEN / "text.txt"), "cache_dir": str(tmp_path / "cache")}  # the text has moved since
    about["config"]["data"] |= places
    torch.save(content, tmp_path / "moved.ckpt")
    result = command("evaluate", str(tmp_path / "moved.ckpt"), "--json", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["nats_per_token"] == pytest.approx(about["metrics"]["val/loss"], rel=1e-5)
    assert measured["data"]["sha256"] == about.get("data_sha256", measured["data"]["sha256"])


@pytest.mark.parametrize("name", ["09ff6a0-gpt.ckpt", "e5c64d4-video.ckpt", "e1da2a2-pretrained-json.ckpt"])
def test_an_older_run_is_exported(command: Any, tmp_path: Path, name: str) -> None:
    result = command("export", str(GOLDEN / name), str(tmp_path / "out"), "--format", "safetensors")
    assert result.returncode == 0, result.stderr
    here, there = open_model.load_model(GOLDEN / name), open_model.load_model(tmp_path / "out")
    assert here[0].config == there[0].config
    assert all(torch.equal(a, b) for a, b in zip(here[0].parameters(), there[0].parameters(), strict=True))
    assert here[1].to_dict() == there[1].to_dict()


@pytest.mark.parametrize("name", ["09ff6a0-gpt.ckpt", "e5c64d4-bigram.ckpt", "e1da2a2-gpt-bpe.ckpt"])
def test_a_run_begins_with_an_older_model(command: Any, tmp_path: Path, name: str) -> None:
    shutil.copy(GOLDEN / "text.txt", tmp_path)
    result = command(
        "train",
        *(f"init_from={GOLDEN / name}", "data=text", "data.path=text.txt", "trainer=cpu", "trainer.max_steps=1"),
        *("data.batch_size=2", "trainer.sample_tokens=0", "hydra.run.dir=run", f"data.cache_dir={tmp_path / 'cache'}"),
    )
    assert result.returncode == 0, result.stderr
    assert checkpoint.load_checkpoint(tmp_path / "run")[0].num_parameters() == ANSWERS[name]["parameters"]


def test_what_an_upgrade_is_given_stays_as_it_was() -> None:
    about = torch.load(GOLDEN / "09ff6a0-gpt.ckpt", weights_only=True)[description.KEY]
    before = json.dumps(about)
    new = upgrades.from_format_1(about)
    assert json.dumps(about) == before
    assert (new["model"]["mlp"], new["config"]["model"]["mlp"]) == ("gelu", "gelu")
    assert upgrades.from_format_1(new) == new


@pytest.mark.parametrize(
    "change",
    [{"model": 7}, {"tokenizer": None}, {"tokenizer": []}, {"config": {"data": 3}}, {"config": [1]}, {"model": {3: 4}}],
)
def test_a_damaged_older_file_is_one_message(tmp_path: Path, change: dict[str, Any]) -> None:
    content = torch.load(GOLDEN / "e5c64d4-bigram.ckpt", weights_only=True)
    content[description.KEY] |= change
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError, match=r"damaged.ckpt does not fit together"):
        checkpoint.load_checkpoint(tmp_path / "damaged.ckpt")
