"""A model that brings a chat template is fine-tuned, asked and exported in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlab.data.chat.chat_format import END, ChatFormat
from gptlab.data.chat.template import ChatTemplate
from gptlab.formats import checkpoint, description
from gptlab.formats.open_model import open_model
from gptlab.generation.answers import empty_answers
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training.fit import fit
from tests.conftest import Result
from tests.formats.chat_folders import CHATML, TEMPLATES, chat_folder
from tests.generation.contexts import spy
from tests.training.runs_compared import assert_same_run
from tests.training.test_resume import Kill, interrupt

TURN = "<|start_header_id|>assistant<|end_header_id|>\n\n"
COLOURS = {"grass": "green", "sky": "blue", "snow": "white", "coal": "black"}
OWN = (
    *("data=chat", "model=pretrained", "tokenizer=pretrained", "trainer=cpu", "schedule=constant", "optim.lr=1e-2"),
    *("task.answer_tokens=9", "data.val_fraction=0.2", "data.batch_size=4", "trainer.log_every=1"),
    *("recipe.warmup_steps=0", "model.dropout=0.1", "trainer.max_steps=7", "trainer.val_every=3"),
)


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [[("user", f"{thing}?"), ("assistant", colour)] for thing, colour in COLOURS.items()]
    talked = [("system", "Be brief."), *rows[2], *rows[1]]
    messages = [[{"role": role, "content": text} for role, text in row] for row in [*rows * 5, talked]]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in messages))
    return path


@pytest.fixture(scope="session")
def own(compose: Any, chats: Path) -> Any:
    """own(run_dir, source, *overrides) fine-tunes the model of the folder `source` on `chats`."""

    def own(run_dir: Path, source: Path, *overrides: str, resume: bool = False) -> dict[str, Any]:
        words = (*OWN, f"data.path={chats}", f"init_from={source}", *overrides)
        return fit(compose(*words), run_dir, resume)

    return own


def of_transformers(folder: Path, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and which the loss is of: as marked, or up to the end of what each answer adds."""
    theirs = AutoTokenizer.from_pretrained(folder)
    marked = "generation" in theirs.chat_template.replace("add_generation_prompt", "")
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=marked)
    ids = found["input_ids"]
    counted = [bool(mask) for mask in found["assistant_masks"]] if marked else [False] * len(ids)
    for i, message in enumerate(messages):
        if not marked and message["role"] == "assistant":
            begin = len(theirs.apply_chat_template(messages[:i], add_generation_prompt=True)["input_ids"])
            ends = {theirs.eos_token_id, theirs.convert_tokens_to_ids("<|eot_id|>")}
            end = next(j for j in range(begin, len(ids)) if ids[j] in ends)
            counted[begin : end + 1] = [True] * (end + 1 - begin)
    return ids, counted


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_is_that_of_the_tokens_that_transformers_marks(
    own: Any, chats: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = chat_folder(tmp_path / "theirs", name)
    own(tmp_path / "run", folder, "trainer.max_steps=1", "trainer.val_first=false", "task.check=0")
    summary = read_json(tmp_path / "run" / "summary.json")
    model, tokenizer, info = checkpoint.load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert tokenizer.vocab_size == open_model(str(folder)).tokenizer.vocab_size  # nothing is added
    assert f"written in the chat template of {folder}" in caplog.text
    nats, count = 0.0, 0
    rows = [json.loads(line) for line in chats.read_text().splitlines()]
    for row in rows[int(0.8 * len(rows)) :]:
        ids, counted = of_transformers(folder, row["messages"])
        with torch.no_grad():
            logits = model(torch.tensor([ids[:-1]]))[0]
        targets = torch.tensor([i if c else -100 for i, c in zip(ids, counted, strict=True)][1:])
        nats += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
        count += sum(counted)
    assert summary["val/loss"] == pytest.approx(nats / count, abs=1e-5)
    assert isinstance(info.chat, ChatTemplate)


@pytest.fixture(scope="module", params=["marked", "llama 3"])
def learned(own: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A run that knows the colours by heart, and the name of its template; the folder that it began with is gone."""
    place = tmp_path_factory.mktemp("learned")
    folder = chat_folder(place / "theirs", request.param)
    own(place / "run", folder, "trainer.max_steps=90", "trainer.val_every=90", "model.dropout=0")
    shutil.rmtree(folder)
    return place / "run", request.param


def test_answers_are_drawn_in_the_template_and_end_there(
    command: Any, learned: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, _ = learned
    summary = read_json(run_dir / "summary.json")
    assert summary["val/accuracy"] >= 0.8
    assert summary["val/stop_rate"] == 1
    assert "> sky?\nblue\n" in (run_dir / "samples.txt").read_text()
    result: Result = command("generate", str(run_dir), "coal?", "--temperature", "0", "--json")
    assert json.loads(result.stdout)["text"].strip() == "black"
    assert json.loads(result.stdout)["finish"] == "end_of_text"
    lines = iter(["coal?", "sky?", "snow?"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    result = command("generate", str(run_dir), "--interactive", "--temperature", "0")
    assert result.stdout.split()[0] == "black"
    assert set(result.stdout.split()) <= set(COLOURS.values())


def test_an_export_has_the_template_and_its_ends(command: Any, learned: tuple[Path, str]) -> None:
    run_dir, name = learned
    for words in (["export", str(run_dir), "exported"], ["export", "exported", "again"]):
        assert command(*words).returncode == 0
    tokenizer, model = (kind.from_pretrained("again") for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert tokenizer.chat_template == TEMPLATES[name].source
    chat = checkpoint.load_checkpoint(run_dir)[2].chat
    assert chat is not None
    assert set(model.generation_config.eos_token_id) == set(chat.ends)
    for thing, colour in COLOURS.items():
        said = [{"role": "user", "content": f"{thing}?"}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        drawn = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(drawn, skip_special_tokens=True).strip() == colour
        assert drawn[-1] in chat.ends
    assert command("export", str(run_dir), "file", "--format", "safetensors").returncode == 0
    for place in ("again", "file"):
        result = command("generate", place, "coal?", "--temperature", "0", "--json")
        assert json.loads(result.stdout)["text"].strip() == "black"


def test_a_second_fine_tuning_goes_on_with_the_template(own: Any, learned: tuple[Path, str], tmp_path: Path) -> None:
    run_dir, name = learned
    summary = own(tmp_path / "run", run_dir, "trainer.max_steps=1", "trainer.val_first=false", "optim.lr=1e-9")
    before = read_json(run_dir / "summary.json")
    assert summary["val/loss"] == pytest.approx(before["val/loss"], abs=1e-5)
    first, second = (checkpoint.load_checkpoint(place)[2].chat for place in (run_dir, tmp_path / "run"))
    assert isinstance(first, ChatTemplate)
    assert isinstance(second, ChatTemplate)
    assert second.to_dict() == first.to_dict()
    assert second.source == TEMPLATES[name].source


@pytest.mark.parametrize("lora", [0, 2])
def test_a_resumed_run_keeps_its_template(own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: int) -> None:
    folder = chat_folder(tmp_path / "theirs", "chatml")
    hard = ("data.micro_batch_size=2", f"lora.rank={lora}", "lora.targets=[c_attn]")
    own(tmp_path / "whole", folder, *hard)
    with monkeypatch.context() as patched:
        interrupt(patched, Kill(4, 15))
        with pytest.raises(SystemExit):
            own(tmp_path / "stopped", folder, *hard)
    (folder / "chat_template.jinja").write_text(TEMPLATES["default system"].source)
    own(tmp_path / "stopped", folder, *hard, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_what_a_template_is_not_told_stays_untold_in_an_export(command: Any, tmp_path: Path) -> None:
    """A tokenizer without a beginning of text is exported with its end as one, which this template would write."""
    folder = chat_folder(tmp_path / "theirs", "zephyr")
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + TEMPLATES["zephyr"].source)
    assert command("export", str(folder), "exported").returncode == 0
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    before, after = (AutoTokenizer.from_pretrained(place).apply_chat_template(said) for place in (folder, "exported"))
    assert after["input_ids"] == before["input_ids"]


def test_gptlabs_format_can_be_chosen(own: Any, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "theirs", "chatml")
    own(tmp_path / "run", folder, "trainer.max_steps=1", "task.chat_template=gptlab")
    _, tokenizer, info = checkpoint.load_checkpoint(tmp_path / "run")
    assert isinstance(info.chat, ChatFormat)
    assert tokenizer.special_tokens[END] == tokenizer.vocab_size - 1


def test_a_model_from_elsewhere_is_asked_in_its_template(command: Any, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "theirs", "default system")
    opened = open_model(str(folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    wanted = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    [answer] = empty_answers(opened, ["Hi"], samples=1, seed=0, stops=())
    assert answer.ids == wanted
    [answer] = empty_answers(opened, ["<|im_start|>Hi"], samples=1, seed=0, stops=(), special=True)
    assert answer.ids == theirs("<|im_start|>Hi")["input_ids"]
    answer.stream.add(theirs.eos_token_id)
    assert answer.stream.finish == "end_of_text"


BROKEN = {
    "no Jinja": ("{% for %}", "is no Jinja: line 1"),
    "without an end": ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes no special token after an answer"),
    "that refuses": ("{{ raise_exception('never') }}", "refuses a conversation, or is broken (TemplateError: never)"),
    "of attributes": ("{{ messages.__class__.__mro__ }}", "SecurityError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_refused_by_its_file_with_a_way_out(
    own: Any, command: Any, tmp_path: Path, name: str
) -> None:
    source, words = BROKEN[name]
    folder = chat_folder(tmp_path / "theirs", "chatml")
    (folder / "chat_template.jinja").write_text(source)
    with pytest.raises(UserError) as refused:
        own(tmp_path / "run", folder)
    assert words in str(refused.value)
    assert f"the chat template of {folder}" in str(refused.value)
    assert "task.chat_template=gptlab does without it" in str(refused.value)
    result: Result = command("generate", str(folder), "Hi")
    assert result.returncode == 1
    assert words in result.stderr
    assert "--special" in result.stderr
    assert command("generate", str(folder), "Hi", "--special", "--max-new-tokens", "2").returncode == 0
    result = command("export", str(folder), "exported")
    assert result.returncode == 0
    assert not Path("exported/chat_template.jinja").exists()


def test_a_file_that_is_no_text_is_no_template(own: Any, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "theirs", "chatml")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read as a chat template"):
        own(tmp_path / "run", folder)


def test_a_row_that_a_template_refuses_is_named(own: Any, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "theirs", "chatml")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    (folder / "chat_template.jinja").write_text(strict)
    with pytest.raises(UserError, match=r"chats.jsonl, line 21: the chat template of .* \(TemplateError: no system\)"):
        own(tmp_path / "run", folder)


def test_a_template_that_there_is_not_cannot_be_asked_for(own: Any, compose: Any, tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "theirs", "chatml")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=f"task.chat_template=model: init_from={folder} brings no chat template"):
        own(tmp_path / "run", folder, "task.chat_template=model")


def test_a_conversation_goes_on_in_the_template_also_after_an_answer_without_an_end(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of three tokens has no end, which the template writes after it."""
    folder = chat_folder(tmp_path / "theirs", "llama 3")
    asked: list[list[int]] = []

    spy(monkeypatch, "logits", lambda context, *last: asked.append([*context.rows[0]]))
    lines = iter(["Hi", "Ho"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    result: Result = command("generate", str(folder), "--interactive", "--max-new-tokens", "3", "--seed", "1")
    assert result.returncode == 0, result.stderr
    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = open_model(str(folder)).tokenizer
    first = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)["input_ids"]
    assert asked[0] == first
    second = next(ids for ids in asked if "Ho" in tokenizer.decode(ids))
    assert second[: len(first)] == first
    assert tokenizer.decode(second).endswith(
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHo<|eot_id|>" + TURN
    )


DAMAGED: dict[str, Any] = {
    "nothing": None,
    "a text": "x",
    "a key less": {"source": "x"},
    "a number": {"source": 3, "variables": {}, "ends": [1], "date": "2024-07-26"},
    "an end without a token": {"source": "x", "variables": {}, "ends": [10**6], "date": "2024-07-26"},
    "a variable": {"source": "x", "variables": {"bos_token": 1}, "ends": [1], "date": "2024-07-26"},
    "a day": {"source": "x", "variables": {}, "ends": [1], "date": "2024-07-99"},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_description_is_refused(tmp_path: Path, name: str) -> None:
    opened = open_model(str(chat_folder(tmp_path / "theirs", "chatml")))
    about = checkpoint.describe(opened.model, opened.tokenizer, {}, None, 1, {}) | {"chat_template": DAMAGED[name]}
    state = {f"model.{key}": value for key, value in opened.model.state_dict().items()}
    checkpoint.save_checkpoint({description.KEY: about, "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt does not fit together: what it says of its chat template is damaged"):
        checkpoint.load_checkpoint(tmp_path / "a.ckpt")
