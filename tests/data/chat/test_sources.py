"""Every data set is loaded in the form that a task learns from, and one of another form is refused with a way out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptlab.data.chat.conversations import Conversation, Labelled, Preference
from gptlab.data.chat.example_set import CONVERSATIONS, FORMS, LABELS, PREFERENCES, ExampleSet
from gptlab.data.chat.sources import NAMES, NODES, check_problems, load, preference_prompts
from gptlab.system.errors import UserError
from tests.data.chat.helpers import data_config

ROWS: dict[str, list[dict[str, Any]]] = {
    CONVERSATIONS: [{"prompt": f"{i}+0=", "completion": f"{i}"} for i in range(20)],
    LABELS: [{"text": f"text {i}", "label": ("spam", "ham")[i % 2]} for i in range(20)],
    PREFERENCES: [{"prompt": f"ask {i // 2}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(20)],
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(path: Path, form: str, rows: list[dict[str, Any]] | None = None, **changes: Any) -> ExampleSet:
    return load(data_config("chat", path=write(path / "a.jsonl", rows or ROWS[form]), **changes), form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["position", "document"])
def test_rows_of_each_form_are_loaded_in_parts(tmp_path: Path, form: str, split: str) -> None:
    found = own(tmp_path, form, split=split, val_fraction=0.3, test_fraction=0.3)
    assert (found.name, found.form, found.known) == ("chat", form, False)
    assert [*found.parts] == ["train", "val", "test"]
    rows = [row for part in found.parts.values() for row in part]
    assert len(rows) == 20
    assert {type(row) for row in rows} == {FORMS[form].kind}
    assert len({row.where for row in rows}) == 20


def test_what_is_said_is_told_of_each_form(tmp_path: Path) -> None:
    said = {form: [*own(tmp_path, form).texts("val")] for form in FORMS}
    assert said == {
        CONVERSATIONS: ["18+0=", "18", "19+0=", "19"],
        LABELS: ["text 18", "text 19"],
        PREFERENCES: ["ask 9", "good 18", "bad 18", "ask 9", "good 19", "bad 19"],
    }
    assert own(tmp_path, LABELS).in_words() == "18 training and 2 validation labelled texts of chat"


def test_pairs_of_one_prompt_are_in_one_part_where_a_hash_divides(tmp_path: Path) -> None:
    found = own(tmp_path, PREFERENCES, split="document", val_fraction=0.3)
    train, val = ({each.prompt for each in found.parts[part]} for part in ("train", "val"))
    assert not train & val


CHANGES = [
    (CONVERSATIONS, "completion"),
    (LABELS, "text"),
    (LABELS, "label"),
    (PREFERENCES, "prompt"),
    (PREFERENCES, "chosen"),
    (PREFERENCES, "rejected"),
]


@pytest.mark.parametrize(("form", "key"), CHANGES)
def test_the_hash_is_of_all_that_is_learned_from(tmp_path: Path, form: str, key: str) -> None:
    rows = ROWS[form]
    sha = own(tmp_path, form).sha256()
    assert own(tmp_path, form, [rows[0] | {"id": 7}, *rows[1:]]).sha256() == sha
    changed = rows[0] | {key: "ham" if key == "label" else rows[0][key] + "!"}
    assert own(tmp_path, form, [changed, *rows[1:]]).sha256() != sha


def test_the_hash_of_conversations_stays_what_it_was(tmp_path: Path) -> None:
    """Runs resume by it."""
    assert own(tmp_path, CONVERSATIONS).sha256() == "9f4e5c4948102bc3677a669a5e719777588cc41671b5cabbb932f7f4f062e2d2"


@pytest.mark.parametrize("split", ["position", "document"])
@pytest.mark.parametrize("numbers", [False, True])
def test_classes_are_sorted_labels_whatever_comes_first(tmp_path: Path, split: str, numbers: bool) -> None:
    labels: list[str | int] = [10, 9, 2] if numbers else ["spam", "eggs", "ham"]
    rows = [{"text": f"text {i}", "label": labels[i % 3]} for i in range(30)]
    for some in (rows, rows[::-1]):
        assert own(tmp_path, LABELS, some, split=split).classes == ((2, 9, 10) if numbers else ("eggs", "ham", "spam"))


def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    rows = ROWS[LABELS]
    with pytest.raises(UserError, match=r"line 20: the label 'eggs' is in the val part, and in no row of the training"):
        own(tmp_path, LABELS, [*rows[:19], {"text": "a", "label": "eggs"}])
    with pytest.raises(
        UserError, match=r"all 18 rows of the training part have the label 'ham'; .*or data.split=document"
    ):
        own(tmp_path, LABELS, [row | {"label": "ham" if i < 18 else "spam"} for i, row in enumerate(rows)])


def test_labels_of_parts_that_are_files_are_not_to_be_divided_otherwise(tmp_path: Path, play: str) -> None:
    """What helps there are other rows of the training part."""
    rows, more = ROWS[LABELS], {"text": "a", "label": "eggs"}
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "train.jsonl", rows)
    write(parts / "test.jsonl", [more])
    config = data_config("chat", path=str(parts))
    with pytest.raises(
        UserError, match=r"'eggs' is in the test part, .* learned; add rows of it to the training files$"
    ):
        load(config, LABELS)
    write(parts / "train.jsonl", [*rows, more])
    with pytest.raises(UserError, match=r"'eggs' is in the val part, .* learned; mix the rows, .* or data.split=docum"):
        load(config, LABELS)
    write(parts / "valid.jsonl", rows)
    write(parts / "train.jsonl", [more])
    with pytest.raises(UserError, match=r"all 1 rows .* have the label 'eggs'; give rows of at least two$"):
        load(config, LABELS)
    lines = "".join(f"the king {i} sees.\n" for i in range(99))
    Path(play).write_text(lines)
    with pytest.raises(UserError, match=r"data=labels: all .* have the label 'period'; give a longer text$"):
        load(data_config("labels", {"task": "mark"}, path=play), LABELS)


def test_too_few_problems_are_refused_by_their_part_and_the_keys_that_give_more() -> None:
    for held_out, most in ((0.01, 1), (0.001, 0)):
        with pytest.raises(UserError) as refused:
            load(data_config("arithmetic", {"digits": 1, "held_out": held_out}))
        words = str(refused.value)
        assert words.startswith("data=arithmetic: ")
        assert "held out, too few for a validation and a test part; " in words
        assert int(words.split()[1]) <= most
        assert words.endswith(f"raise data.problems.held_out={held_out}, or data.problems.digits=1")
    for examples in (None, 50):
        with pytest.raises(UserError, match=r"the training part has no problems; lower data.problems.held_out=0.999,"):
            load(data_config("arithmetic", {"digits": 1, "held_out": 0.999, "examples": examples}))


LEARN = {
    CONVERSATIONS: r"task=sft, ppo and grpo learn from rows of messages, or prompt \+ completion",
    LABELS: r"task=classify learns from rows of text \+ label",
    PREFERENCES: r"task=reward and dpo learn from rows of prompt \+ chosen \+ rejected",
}


@pytest.mark.parametrize("wanted", FORMS)
@pytest.mark.parametrize("given", FORMS)
def test_rows_of_another_form_are_refused(tmp_path: Path, wanted: str, given: str) -> None:
    if wanted == given:
        return
    with pytest.raises(UserError, match=LEARN[wanted]) as refused:
        own(tmp_path, wanted, ROWS[given])
    rows = " + ".join(ROWS[given][0])
    assert f"a.jsonl, line 1: rows of {rows} are for {FORMS[given].tasks}; " in str(refused.value)


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("text", CONVERSATIONS, "data=text: a text, and task=sft, ppo and grpo learn from conversations; give "
         "data=chat data.path=my.jsonl, data=arithmetic, data=instructions or data=continuations"),
        ("labels", CONVERSATIONS, "data=labels: it has labelled texts, and task=sft, ppo and grpo learn from"),
        ("arithmetic", LABELS, "data=arithmetic: it has conversations, and task=classify learns from labelled "
         "texts; give data=chat data.path=my.jsonl or data=labels"),
        ("labels", PREFERENCES, "task=reward and dpo learn from preferences; give data=chat data.path=my.jsonl or "
         "data=preferences"),
    ],
)  # fmt: skip
def test_a_data_set_of_another_form_is_refused(name: str, form: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        load(data_config(name), form)
    assert words in str(refused.value)


PLAY = "".join(f"KING:\nthe old cat number {i} sees a bird\nand eats what it sees on day {i}.\n\n" for i in range(99))


@pytest.fixture
def play(tmp_path: Path) -> str:
    path = tmp_path / "play.txt"
    path.write_text(PLAY)
    return str(path)


def test_generated_sets_are_of_the_text_at_the_path(play: str) -> None:
    more = {"held_out": 0.3, "examples": 40}
    lines = load(data_config("continuations", more | {"characters": 20}, path=play))
    assert (lines.name, lines.form, lines.known) == ("continuations", CONVERSATIONS, False)
    asked = {each.messages[0].content: each.messages[1].content for each in lines.parts["train"]}
    assert len(asked) == 40
    assert asked.keys() <= {*PLAY.split("\n")}
    assert max(map(len, asked.values())) <= 20
    labels = load(data_config("labels", more | {"task": "words"}, path=play), LABELS)
    assert (labels.form, labels.classes, labels.known) == (LABELS, ("as_is", "swapped"), True)
    for found in (lines, labels):
        assert len(found.parts["train"]) == 40
        rest = len(found.parts["val"]) + len(found.parts["test"])
        assert len(found.parts["val"]) == int(0.1 * rest) > 1


def test_prompts_of_preferences_are_lines_of_both_parts(play: str) -> None:
    values = {"held_out": 0.3, "pairs": 30, "held_out_pairs": 10}
    found = preference_prompts(data_config("preferences", values, path=play))
    assert {part: len(prompts) for part, prompts in found.items()} == {"train": 30, "held_out": 10}
    train, held_out = ({each.messages[0].content for each in prompts} for prompts in found.values())
    assert not train & held_out
    assert train | held_out <= {line for line in PLAY.split("\n") if line}


@pytest.mark.parametrize("name", ["continuations", "labels", "instructions", "preferences"])
def test_the_end_of_a_text_is_left_for_models_of_texts(play: str, name: str) -> None:
    """What a model of this text was validated on is in no part: else it would seem to forget nothing."""
    config = data_config(name, {"held_out": 0.3}, path=play)
    assert config.problems["text_share"] == 0.9
    form = LABELS if name == "labels" else CONVERSATIONS
    parts = preference_prompts(config) if name == "preferences" else load(config, form).parts
    said = [each.text if isinstance(each, Labelled) else each.messages[0].content for p in parts.values() for each in p]
    numbers = {int(number) for text in said for number in re.findall(r"(?:number|day) (\d+)", text)}
    assert max(numbers, default=0) <= 89
    assert len(numbers) > 70 or name == "instructions"  # whose words have no numbers


@pytest.mark.parametrize("name", ["continuations", "labels", "instructions"])
def test_a_text_of_which_nothing_can_be_made_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("--\n" * 200)
    with pytest.raises(UserError, match=f"data={name}: the text has no "):
        load(data_config(name, path=str(path)), LABELS if name == "labels" else CONVERSATIONS)
    with pytest.raises(UserError, match=r"data=preferences: the text has no lines .* in the part train; give a longer"):
        preference_prompts(data_config("preferences", path=str(path)))


@pytest.mark.parametrize(
    ("name", "problems", "words"),
    [
        ("continuations", {"characters": 0}, "data.problems.characters=0: must be at least 1"),
        ("continuations", {"examples": 0}, "data.problems.examples=0: must be at least 1"),
        ("continuations", {"task": "x"}, "data.problems.task=x: there is no such key; "),
        ("labels", {"task": "speling"}, "data.problems.task=speling: no such task; "),
        ("labels", {"text_share": 0}, "data.problems.text_share=0: must be above 0"),
        ("labels", {"text_share": 1.5}, "data.problems.text_share=1.5: must be above 0, and at most 1"),
        ("labels", {"held_out": 2.0}, "data.problems.held_out=2.0: must be more than 0"),
        ("preferences", {"pairs": 0}, "data.problems.pairs=0: must be at least 1"),
        ("preferences", {"held_out_pairs": 1}, "data.problems.held_out_pairs=1: must be at least 2"),
        ("preferences", {"noise": -1}, "data.problems.noise=-1: must be at least 0"),
        ("preferences", {"noise": float("nan")}, "data.problems.noise=nan: must be at least 0"),
        ("preferences", {"temperature": 0}, "data.problems.temperature=0: must be above 0, or both answers"),
        ("preferences", {"answer_tokens": 1}, "data.problems.answer_tokens=1: must be at least 2"),
        ("preferences", {"reward": 7}, "data.problems.reward=7: must be of type str"),
    ],
)
def test_problems_are_checked(name: str, problems: dict[str, Any], words: str) -> None:
    assert check_problems(name, data_config(name).problems)
    with pytest.raises(UserError) as refused:
        check_problems(name, data_config(name, problems).problems)
    assert str(refused.value).startswith(words)


def test_every_set_has_a_form_and_every_form_a_kind_of_row() -> None:
    assert set(NODES) | {"chat"} == set(NAMES)
    assert {form.kind for form in FORMS.values()} == {Conversation, Labelled, Preference}
