"""Fine-tuning on conversations: what is learned from, what counts, and what the model answers afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptlab import bench
from gptlab.data.chat import sources
from gptlab.data.chat.chat_format import END, ChatFormat
from gptlab.data.chat.conversations import Conversation, Message
from gptlab.formats import checkpoint
from gptlab.generation.replies import Reply
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training import answers
from gptlab.training.callbacks import samples
from tests.conftest import Result
from tests.training.test_fit import curve
from tests.training.test_resume import goes_on

COLOURS = {"grass": "green", "sky": "blue", "snow": "white", "coal": "black", "blood": "red", "a lemon": "yellow"}
SFT = ("data=chat", "task.answer_tokens=9", "model.block_size=47", "model.dropout=0.1", "data.val_fraction=0.2")


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of different lengths about colours, every one several times."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    asked = [
        {"prompt": f"{'please, ' * (i % 2)}what is {thing} like", "completion": colour}
        for i in range(7)
        for thing, colour in COLOURS.items()
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return path


@pytest.fixture
def sft(run: Any, chats: Path) -> Any:
    """sft(run_dir, *overrides) fine-tunes the tiny model on `chats`."""

    def sft(run_dir: Path, *overrides: str, **options: Any) -> dict[str, Any]:
        return run(run_dir, *SFT, f"data.path={chats}", *overrides, **options)

    return sft


def conversations(path: Path) -> list[Conversation]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Conversation((Message("user", row["prompt"]), Message("assistant", row["completion"])), 1) for row in rows]


@pytest.mark.parametrize("option", ["task.pack=true", "task.pack=false", "task.loss_on=all"])
def test_the_loss_is_that_of_the_answers_and_their_ends_alone(
    sft: Any, chats: Path, tmp_path: Path, option: str
) -> None:
    """Faults 1 and 2: no loss on the first token of an answer, or on its end; and none where others see each other."""
    summary = sft(tmp_path, option)
    model, tokenizer, _ = checkpoint.load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert tokenizer.special_tokens[END] == tokenizer.vocab_size - 1
    nats, count = 0.0, 0
    held_out = conversations(chats)[int(42 * 0.8) :]
    assert len(held_out) == 9
    for each in held_out:
        prompt = ChatFormat(tokenizer).prompt(each.messages[:1]).tolist()
        answer = [*tokenizer.encode(each.messages[1].content).tolist(), tokenizer.special_tokens[END]]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        nats += F.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        count += len(answer)
    assert summary["val/loss"] == pytest.approx(nats / count, abs=1e-5)
    said = sum(len(each.messages[1].content) for each in held_out)
    assert summary["val/bpb"] == pytest.approx(nats / said / 0.6931472, abs=1e-5)


def test_micro_batches_of_any_size_are_the_same_run(sft: Any, tmp_path: Path) -> None:
    """Fault 9: a mean of the micro-batches' means, which differ in how many targets count."""
    curves = []
    for size in (1, 2, 6):
        sft(tmp_path / str(size), f"data.micro_batch_size={size}", "task.pack=false")
        curves.append(curve(tmp_path / str(size)) + curve(tmp_path / str(size), "grad_norm"))
    assert len(curves[0]) == 14
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(sft: Any, tmp_path: Path) -> None:
    goes_on(sft, tmp_path, ("data.micro_batch_size=3", "trainer.diagnose_every=2"), 7)


LEARNED = ("trainer.max_steps=150", "trainer.val_every=150", "optim.lr=1e-2", "data.batch_size=3", "model.dropout=0")
LEARNED += ("schedule=constant", "data.test_fraction=0.1", "trainer.log_every=50")


@pytest.fixture(scope="session")
def learned(run: Any, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the colours by heart."""
    run_dir = tmp_path_factory.mktemp("sft") / "learned"
    run(run_dir, *SFT, f"data.path={chats}", *LEARNED)
    return run_dir


def test_what_is_learned_is_answered_and_ended(learned: Path) -> None:
    summary = read_json(learned / "summary.json")
    for part in ("val", "test"):
        assert summary[f"{part}/accuracy"] == summary[f"{part}/stop_rate"] == 1
        assert 4 <= summary[f"{part}/answer_tokens"] <= 7
    assert "> please, what is snow like\nwhite\n" in (learned / "samples.txt").read_text()
    assert "wanted" in (learned / "samples.txt").read_text()  # before the first step


def test_the_samples_are_of_each_kind() -> None:
    said = [answers.Answered(f"{kind} {i}", "", "", True, True, 1, None, kind) for kind in "ab" for i in range(3)]
    shown = [
        each.prompt for each in samples.of_each_kind([*said, answers.Answered("c 0", "", "", True, True, 1, None, "c")])
    ]
    assert shown == ["a 0", "b 0", "c 0", "a 1", "b 1", "a 2", "b 2"]


def test_a_run_ends_once_enough_answers_are_right(sft: Any, learned: Path, tmp_path: Path) -> None:
    further = ("tokenizer=pretrained", f"init_from='{learned}'", "trainer.max_steps=6")
    steps = ("trainer.val_every=2", "schedule.decay_steps=6", "optim.lr=1e-5")
    summary = sft(tmp_path / "enough", *further, *steps, "task.enough=0.9")
    assert (summary["status"], summary["steps"]) == ("stopped_early", 2)
    assert sft(tmp_path / "never", *further, *steps)["steps"] == 6


@pytest.mark.parametrize("words", [["--temperature", "0"], ["--interactive", "--temperature", "0"]])
def test_generate_speaks_in_the_chat_format(
    command: Any, learned: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", iter(())) if words[0] != "--interactive" else None
    lines = iter(["what is coal like", "what is the sky like"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError))
    asked = [] if words[0] == "--interactive" else ["what is coal like"]
    result: Result = command("generate", str(learned), *asked, *words)
    assert result.returncode == 0, result.stderr
    assert "black\n" in result.stdout


def test_transformers_asks_an_export_in_the_same_form_and_ends_where_we_do(command: Any, learned: Path) -> None:
    result: Result = command("export", str(learned), "exported")
    assert result.returncode == 0, result.stderr
    tokenizer = AutoTokenizer.from_pretrained("exported")
    model = AutoModelForCausalLM.from_pretrained("exported")
    _, ours, _ = checkpoint.load_checkpoint(learned)
    for thing, colour in COLOURS.items():
        said = [{"role": "user", "content": f"what is {thing} like"}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert ids["input_ids"][0].tolist() == ChatFormat(ours).prompt([Message(**said[0])]).tolist()
        drawn = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert tokenizer.decode(drawn, skip_special_tokens=True) == colour
        assert tokenizer.decode(drawn[-1:]) == END
    both = [*said, {"role": "assistant", "content": colour}]
    masked = tokenizer.apply_chat_template(both, return_dict=True, return_assistant_tokens_mask=True)
    ids, counted = ChatFormat(ours).encode([Message(**each) for each in both])
    assert masked["input_ids"] == ids.tolist()
    assert masked["assistant_masks"] == counted.astype(int).tolist()


def test_the_closing_words_ask_with_a_prompt_that_can_be_pasted(run: Any, tmp_path: Path) -> None:
    said = ["-n", "two\nlines", "x" * 99, "the sky", "- no"]
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps({"prompt": text, "completion": "a"}) + "\n" for text in said * 2))
    short = ("trainer.max_steps=1", "data.val_fraction=0.5")
    assert run(tmp_path / "run", *SFT, f"data.path={chat}", *short)["opening"] == "the sky"


def test_evaluate_and_bench_say_that_they_measure_texts(
    command: Any, learned: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result: Result = command("evaluate", str(learned))
    assert (result.returncode, result.stdout) == (1, "")
    assert "learned learned from conversations (data=chat): --task measures how well it answers" in result.stderr
    assert command("evaluate", str(learned), "--data", str(text_file)).returncode == 0
    told: list[dict[str, Any]] = []  # to the process that prints it
    monkeypatch.setattr(bench, "Parent", lambda: SimpleNamespace(send=lambda **answer: told.append(answer)))
    assert command("bench", "data=arithmetic", "--side", "gptlab").returncode == 1
    assert told == [{"error": "task=sft: bench times the training on text only; use task=pretrain"}]


def test_gptlab_asks_an_export_in_the_same_form(command: Any, learned: Path) -> None:
    assert command("export", str(learned), "exported").returncode == 0
    assert command("export", "exported", "again").returncode == 0
    asked = ("what is coal like", "--temperature", "0", "--json")
    names = (str(learned), "exported", "again")
    assert [json.loads(command("generate", name, *asked).stdout)["text"] for name in names] == ["black"] * 3


def test_special_tokens_are_written_out_where_that_is_asked_for(command: Any, learned: Path) -> None:
    text = "<|begin_of_text|><|user|>what is grass like<|end|><|assistant|>"
    result: Result = command("generate", str(learned), text, "--special", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("green")


def test_the_base_models_knowledge_is_kept_and_the_chat_tokens_are_added(
    run: Any, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps({"prompt": "the cat", "completion": "sees"}) + "\n" for _ in range(20)))
    shape = ("tokenizer=pretrained", "model.block_size=17", "trainer.max_steps=1")
    summary = run(tmp_path / "run", *SFT, f"data.path={chat}", f"init_from={trained}", *shape)
    assert summary["parameters"] == read_json(trained / "summary.json")["parameters"] + 5 * 33
    names = "<|begin_of_text|> <|system|> <|user|> <|assistant|> <|end|>"
    assert f"new tokens, whose weights begin as the mean of the others': {names}" in caplog.text


@pytest.mark.parametrize("split", ["position", "document"])
def test_a_validation_part_is_cut_off_beside_a_test_part_of_its_own(compose: Any, tmp_path: Path, split: str) -> None:
    rows = "".join(f'{{"prompt": "what is {i}", "completion": "a number"}}\n' for i in range(42))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "test.jsonl").write_text(rows.replace("what is", "tell me of"))
    chosen = ("data=chat", f"data.path={tmp_path}", f"data.split={split}", "data.val_fraction=0.2")
    parts = sources.load(compose(*chosen).data).parts
    assert len(parts["test"]) == 42
    assert all("tell" in each.messages[0].content for each in parts["test"])
    assert len(parts["train"]) + len(parts["val"]) == 42
    (tmp_path / "valid.jsonl").write_text(rows)
    few = sources.load(compose(*chosen, "data.max_documents=5").data).parts
    assert {part: len(rows) for part, rows in few.items()} == {"train": 5, "val": 5, "test": 5}  # as of a text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.enough=0.5"], "task.enough=0.5: nothing is answered; leave it null"),
        (["data=arithmetic", "task.enough=2"], "task.enough=2.0: is a share of right answers, above 0 and at most 1"),
        (["task=sft"], "data=auto: a text, and task=sft, ppo and grpo learn from conversations; give data=chat"),
        (["data=chat", "task=pretrain"], "data=chat with task=pretrain: it has conversations; use task=sft"),
        (["task.loss_on=prompts"], "task.loss_on=prompts: must be one of answers, all"),
        (["task.too_long=crop"], "task.too_long=crop: must be one of cut, refuse"),
        (["task.name=sff"], "task.name=sff: no such task; did you mean sft?"),
        (["data=chat", "data.order=epochs"], "data.order=epochs: is of task=pretrain only"),
        (["task.chat_template=own"], "task.chat_template=own: must be one of auto, model, gptlab"),
        (["data=chat", "task.chat_template=model"], "task.chat_template=model: there is no model that brings one"),
        (["task.check=-1"], "task.check=-1: must be at least 1, or 0 for none"),
        (["task.answer_tokens=0"], "task.answer_tokens=0: must be at least 1"),
        (["data=chat", "trainer.baseline=ngram:3"], "trainer.baseline=ngram:3: is of task=pretrain only"),
        (["data=arithmetic", "data.problems.digits=0"], "data.problems.digits=0: must be at least 1"),
        (["data=arithmetic", "data.problems.task=multiply"], "data.problems.task=multiply: no such task"),
        (["data=arithmetic", "+data.problems.digit=0"], "data.problems.digit=0: there is no such key; did you mean"),
        (["data=arithmetic", "data.problems.digits=2.5"], "data.problems.digits=2.5: must be of type int"),
        (["data=arithmetic", "~data.problems.seed"], "data.problems.seed: is missing"),
        (["data=instructions", "data.problems.held_out=1"], "data.problems.held_out=1: must be more than 0"),
        (["data=instructions", "data.problems.examples=0"], "data.problems.examples=0: must be at least 1"),
        (["data=text", "+data.problems.digits=2"], "data.problems={'digits': 2}: data=text has none; leave it out"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    compose: Any, overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        compose(*overrides)
    assert words in str(refused.value)


def test_answers_that_cannot_be_right_are_counted(run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A character that the tokenizer lacks, and an answer longer than any that is drawn."""
    chat = tmp_path / "chat.jsonl"
    said = ["yes"] * 10 + ["no"] * 7 + ["n\u00f6"] * 2 + ["yes" * 9]
    chat.write_text("".join(json.dumps({"prompt": "no yes", "completion": each}) + "\n" for each in said))
    run(tmp_path / "run", *SFT, f"data.path={chat}", "trainer.max_steps=1", "data.val_fraction=0.5")
    words = (
        "3 of the 10 answers that val/accuracy is of cannot be right: tokenizer=char writes them otherwise, or in more"
    )
    assert f"{words} than task.answer_tokens=9" in caplog.text


def test_sums_are_learned_and_measured_on_all_that_are_held_out(run: Any, tmp_path: Path) -> None:
    summary = run(
        tmp_path,
        *("data=arithmetic", "data.problems.digits=1", "data.problems.held_out=0.3", "data.val_fraction=0.2"),
        *("trainer.max_steps=2", "model.block_size=17"),
    )
    _, tokenizer, info = checkpoint.load_checkpoint(tmp_path)
    text = (tmp_path / "samples.txt").read_text()
    assert "> " in text
    assert 0 <= summary["test/accuracy"] <= 1
    assert info.config["data"]["name"] == "arithmetic"
    assert set(tokenizer.decode(list(range(tokenizer.vocab_size))).replace("<|end|>", "")) >= set("0123456789+=")


def test_instructions_are_made_from_the_text_and_measured_by_kind(run: Any, text_file: Path, tmp_path: Path) -> None:
    play = tmp_path / "play.txt"
    play.write_text("KING:\nthe old cat sees " + text_file.read_text().replace("king", "\n\nQUEEN:\nWho"))
    shape = ("model.block_size=97", "trainer.max_steps=1", "data.problems.held_out=0.3", "data.val_fraction=0.5")
    summary = run(tmp_path / "run", "data=instructions", f"data.path={play}", *shape, "task.answer_tokens=3")
    kinds = {name for name in summary if name.startswith("test/accuracy_")}
    assert "test/accuracy_count" in kinds
    assert len(kinds) > 1


def test_the_kind_of_an_instruction_is_known_where_its_beginning_is_cut(
    run: Any, text_file: Path, tmp_path: Path, command: Any
) -> None:
    """After 'Who speaks here?' has been cut away, the run must not end without a summary."""
    play = tmp_path / "play.txt"
    play.write_text("KING:\nthe old cat sees " + text_file.read_text().replace("king", "\n\nQUEEN:\nWho"))
    shape = ("model.block_size=24", "trainer.max_steps=1", "data.problems.held_out=0.3", "data.val_fraction=0.5")
    summary = run(tmp_path / "run", "data=instructions", f"data.path={play}", *shape, "task.answer_tokens=3")
    assert read_json(tmp_path / "run" / "summary.json")["steps"] == 1
    assert {"test/accuracy_count", "test/accuracy_who", "test/accuracy_backwards"} <= summary.keys()
    result: Result = command("evaluate", str(tmp_path / "run"), "--task", "--json")
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)["values"]
    kinds = [name for name in summary if name.startswith("test/accuracy")]
    assert {name: values[name.removeprefix("test/")]["value"] for name in kinds} == {k: summary[k] for k in kinds}


def test_what_is_asked_is_what_the_user_said_last(run: Any, tmp_path: Path) -> None:
    """And not the first of two messages of the assistant."""
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in (("user", f"say {i}"), ("assistant", "well"),
                                                                         ("assistant", "yes"))]}
        for i in range(20)
    ]  # fmt: skip
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps(each) + "\n" for each in rows))
    summary = run(tmp_path / "run", *SFT, f"data.path={chat}", "trainer.max_steps=1")
    assert summary["opening"] == "say 16"
    asked = [line for line in (tmp_path / "run" / "samples.txt").read_text().splitlines() if line.startswith("> ")]
    assert set(asked) == {f"> say {i}" for i in range(16, 20)}


@pytest.mark.parametrize(("part", "rows"), [("train", range(16)), ("val", range(16, 20))])
def test_a_part_of_which_nothing_is_left_is_named(run: Any, tmp_path: Path, part: str, rows: range) -> None:
    lines = [{"prompt": f"say {i}", "completion": "yes" * (20 if i in rows else 1)} for i in range(20)]
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps(each) + "\n" for each in lines))
    words = rf"data=chat: no conversations of the {part} part are left: {len(rows)} left out, since the answer leaves"
    with pytest.raises(UserError, match=f"{words} .*; take a larger model.block_size"):
        run(tmp_path / "run", *SFT, f"data.path={chat}")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_whose_answers_have_no_character_that_the_tokenizer_knows_is_refused(
    run: Any, trained: Path, tmp_path: Path, part: str
) -> None:
    """There is nothing to learn or to measure, and no byte to measure it by."""
    begins = {"train": range(14), "val": range(14, 17), "test": range(17, 20)}
    lines = [{"prompt": "the cat", "completion": "\u65e5\u672c" if i in begins[part] else "sees"} for i in range(20)]
    chat = tmp_path / "chat.jsonl"
    chat.write_text("".join(json.dumps(each) + "\n" for each in lines))
    shape = ("tokenizer=pretrained", "model.block_size=17", "trainer.max_steps=1", f"init_from={trained}")
    parts = ("data.val_fraction=0.15", "data.test_fraction=0.15")
    words = (
        rf"data=chat: the {part} part has no answer with a character that tokenizer=char knows, .* with another mode"
    )
    with pytest.raises(UserError, match=words):
        run(tmp_path / "run", *SFT, f"data.path={chat}", *shape, *parts)


def test_a_model_is_asked_what_it_was_trained_on_where_that_was_cut(
    sft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def draw(model: Any, prompts: list[list[int]], *others: Any) -> list[Reply]:
        asked.extend(prompts)
        return [Reply([0], False, [0.0])] * len(prompts)

    monkeypatch.setattr(answers, "draw_replies", draw)
    sft(tmp_path, "model.block_size=20", "trainer.max_steps=1", "trainer.val_first=false")
    _, tokenizer, _ = checkpoint.load_checkpoint(tmp_path)
    assert len(asked) == 9
    assert all(prompt[:2] == ChatFormat(tokenizer).prompt([Message("user", "a")]).tolist()[:2] for prompt in asked)
    assert max(map(len, asked)) <= 20
