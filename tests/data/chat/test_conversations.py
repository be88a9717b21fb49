"""Rows of conversations are read in every form and packing, and what is wrong in one is said with its line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from gptlab.data.chat.conversations import Conversation, Labelled, Message, Preference, read_examples
from gptlab.system.errors import UserError

SYSTEM, ASK, TELL = ({"role": role, "content": f"{role} {i}"} for i, role in enumerate(("system", "user", "assistant")))
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [SYSTEM, ASK, TELL]}, {"messages": [ASK, TELL, ASK, TELL]}],
    "completion": [{"prompt": "1+1=", "completion": "2", "id": 7}, {"prompt": "2+2=", "completion": "4", "id": 8}],
    "chat completion": [{"prompt": [SYSTEM, ASK], "completion": [TELL]}],
    "label": [{"text": "Win a prize", "label": "spam"}, {"text": "See you\nat two, \"Jo\"", "label": "ham"}],
    "preference": [{"prompt": "Say a", "chosen": "a", "rejected": "b"}],
    "chat preference": [{"prompt": [ASK], "chosen": [TELL], "rejected": [{"role": "assistant", "content": "no"}]}],
}  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(path, table.schema) as file:
        file.write_table(table)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], object]] = {
    "a.jsonl": write_lines,
    "a.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    "a.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(
        pyarrow.compress("\n".join(map(json.dumps, rows)).encode(), codec="zstd", asbytes=True)
    ),
    "a.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    "a.arrow": write_stream,
}


def messages(*pairs: dict[str, str]) -> tuple[Message, ...]:
    return tuple(Message(pair["role"], pair["content"]) for pair in pairs)


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_is_read_from_every_packing(tmp_path: Path, name: str) -> None:
    found = {}
    for form, rows in ROWS.items():
        path = tmp_path / form.replace(" ", "") / name
        path.parent.mkdir()
        WRITERS[name](path, rows)
        found[form] = read_examples([path]).rows
    assert found == {
        "messages": [
            Conversation(messages(SYSTEM, ASK, TELL)),
            Conversation(messages(ASK, TELL, ASK, TELL)),
        ],
        "completion": [
            Conversation((Message("user", "1+1="), Message("assistant", "2")), given=1),
            Conversation((Message("user", "2+2="), Message("assistant", "4")), given=1),
        ],
        "chat completion": [Conversation(messages(SYSTEM, ASK, TELL), given=2)],
        "label": [Labelled("Win a prize", "spam"), Labelled('See you\nat two, "Jo"', "ham")],
        "preference": [
            Preference((Message("user", "Say a"),), (Message("assistant", "a"),), (Message("assistant", "b"),))
        ],
        "chat preference": [Preference(messages(ASK), messages(TELL), (Message("assistant", "no"),))],
    }


def test_tables_of_text_are_read(tmp_path: Path) -> None:
    labels, sums = tmp_path / "labels.csv", tmp_path / "sums.tsv"
    labels.write_text('label,text\nspam,"a, b"\nham,c\n')
    sums.write_text("prompt\tcompletion\n1+1=\t2\n")
    assert read_examples([labels]).rows == [Labelled("a, b", "spam"), Labelled("c", "ham")]
    assert read_examples([sums]).form == ("prompt", "completion")


def test_files_are_joined_and_each_row_knows_its_line(tmp_path: Path) -> None:
    one, other = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    write_lines(one, ROWS["completion"])
    other.write_text("\n\n" + json.dumps(ROWS["completion"][0]))
    found = read_examples([one, other])
    assert found.form == ("prompt", "completion")
    assert [row.where for row in found.rows] == [f"{one}, line 1", f"{one}, line 2", f"{other}, line 3"]


def test_null_is_as_good_as_none_and_half_a_form_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"messages": [ASK, TELL], "prompt": "user 1", "text": None, "label": None}])
    assert read_examples([path]).rows == [Conversation(messages(ASK, TELL))]


def test_numbers_may_be_labels_and_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800", "label": 0}\n{"text": "b", "label": 1}')
    assert read_examples([path]).rows == [Labelled("a\ufffd", 0), Labelled("b", 1)]


def test_true_rewards_stand_beside_a_preference(tmp_path: Path) -> None:
    row = {"prompt": "Say a", "chosen": "a", "rejected": "b", "gold_chosen": 1, "gold_rejected": 0.25}
    rows = [row, row | {"gold_chosen": None, "gold_rejected": None}]
    for name, write in WRITERS.items():
        path = tmp_path / name
        write(path, rows)
        assert [each.gold for each in read_examples([path]).rows] == [(1.0, 0.25), None], name


def test_numbers_of_a_table_of_text_are_read_and_an_empty_field_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = ["prompt,chosen,rejected,margin,gold_chosen,gold_rejected", "a,b,c,1.5,2,-1e1", "a,b,c,,,", "a,b,c,-2,,"]
    path.write_text("\n".join(rows))
    found = read_examples([path]).rows
    assert [(each.margin, each.gold) for each in found] == [(1.5, (2.0, -10.0)), (None, None), (-2.0, None)]
    for row, words in {
        "a,b,c,much,,": "margin is 'much', and must be a finite number",
        "a,b,c,nan,,": "margin is 'nan', and must be a finite number",
        "a,b,c,1,inf,0": "gold_chosen is 'inf', and must be a finite number",
        "a,b,c,1,,0": "it has gold_rejected alone; give both",
    }.items():
        path.write_text(f"{rows[0]}\n{row}\n")
        with pytest.raises(UserError, match=f"line 2: {words}"):
            read_examples([path])


def test_what_is_asked_is_what_the_user_said_last() -> None:
    assert Conversation(messages(SYSTEM, ASK, TELL)).asked == "user 1"
    assert Conversation(messages(ASK, TELL, ASK | {"content": "and"}, TELL, TELL)).asked == "and"
    assert Conversation(messages(SYSTEM, TELL)).asked == "system 0"


GOOD = {"messages": [ASK, TELL]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
WRONG: list[tuple[Any, str]] = [
    ({"messages": [ASK, {"role": "asistant", "content": "a"}]},
     r"messages\[1\].role is 'asistant', an unknown role; did you mean assistant\?"),
    ({"messages": [ASK, {"role": 7, "content": "a"}]}, r"messages\[1\].role is 7, an unknown role; there are"),
    ({"messages": [TELL, ASK, TELL]}, "messages begins with the assistant, who would answer nothing"),
    ({"messages": [SYSTEM, TELL]}, "messages begins with the assistant"),
    ({"messages": [ASK, SYSTEM, TELL]}, r"messages\[1\].role is system, which can only be the first"),
    ({"messages": [SYSTEM]}, "messages has a message of the system only"),
    ({"messages": [ASK]}, "messages has no message of the assistant"),
    ({"messages": [ASK, TELL, ASK]}, "messages ends with the user's message, which nobody answers"),
    ({"messages": [ASK, TELL | {"content": ""}]}, r"messages\[1\].content is empty"),
    ({"messages": [ASK, TELL | {"content": None}]}, r"messages\[1\].content is null, and must be a text"),
    ({"messages": [ASK, TELL | {"content": [1]}]}, r"messages\[1\].content is a list, and must be a text"),
    ({"messages": [ASK, {"content": "a"}]}, r"messages\[1\] is an object, and must be an object with role and content"),
    ({"messages": [ASK, "hello"]}, r"messages\[1\] is a text, and must be an object with role and content"),
    ({"messages": []}, "messages is an empty list"),
    ({"messages": "hello"}, "messages is a text, and must be a list of messages"),
    ({"messages": 3.5}, "messages is a number, and must be a list"),
    ({"prompt": 3, "completion": "a"}, "prompt is a number, and must be a text or a list of messages"),
    ({"prompt": "a", "completion": ""}, "completion is empty"),
    ({"prompt": "a", "completion": True}, "completion is true or false, and must be a text"),
    ({"prompt": [ASK, TELL], "completion": "a"}, "prompt ends with the assistant's message; that belongs to"),
    ({"prompt": [TELL], "completion": "a"}, "prompt begins with the assistant"),
    ({"prompt": "a", "completion": [ASK, TELL]}, "completion begins with the user's message"),
    ({"prompt": "a", "completion": [TELL, ASK]}, "completion ends with the user's message"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
    (PAIR | {"gold_chosen": 1}, "it has gold_chosen alone; give both of gold_chosen and gold_rejected, or neither"),
    (PAIR | {"gold_chosen": 1, "gold_rejected": "x"}, "gold_rejected is 'x', and must be a finite number"),
    (PAIR | {"gold_chosen": True, "gold_rejected": 1}, "gold_chosen is True, and must be a finite number"),
    (PAIR | {"margin": 10**400}, "margin is 1000000000.*, and must be a finite number"),
    (PAIR | {"margin": [1]}, r"margin is \[1\], and must be a finite number"),
    (PAIR | {"gold_chosen": float("nan"), "gold_rejected": 1}, "gold_chosen is nan, and must be a finite number"),
    ({"text": "a", "label": 1.5}, "label is a number, and must be a text or a whole number"),
    ({"text": "a", "label": True}, "label is true or false, and must be"),
    ({"text": "a", "label": ""}, "label is an empty text, and must be"),
    ({"text": "", "label": 1}, "text is empty"),
    (GOOD | {"text": "a", "label": 1}, r"it has messages as well as text \+ label; leave one of them"),
    ({"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}, "as well as prompt"),
    ({"prompt": "a", "text": "b"}, r"it must have messages, or prompt \+ completion, or .*; there are prompt, text"),
    ({"messages": None}, "messages is null; leave out such a row"),
    ({"text": "x", "label": None}, "label is null; leave out such a row"),
    ({"messages": None, "text": "x", "label": None}, "label is null; leave out such a row"),
    ({"prompt": "a", "chosen": None, "rejected": "b"}, "chosen is null; leave out such a row"),
    ({"text": "x"}, "it must have messages, or .*; there are text"),
    ({}, "there are no keys"),
    ("hello", "the row is a text, and must be an object with messages"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=message) as error:
        read_examples([path])
    assert str(error.value).startswith(f"{path}, line 2: ")


def test_a_wrong_row_of_a_table_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", ""], "label": ["x", "y"]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2: text is empty"):
        read_examples([path])


def test_forms_are_not_mixed_in_a_file_or_between_files(tmp_path: Path) -> None:
    one, other = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    write_lines(one, [*ROWS["completion"], GOOD])
    with pytest.raises(
        UserError, match=r"1\.jsonl, line 3: it has messages, and .*1\.jsonl, line 1 has prompt \+ comp"
    ):
        read_examples([one])
    write_lines(one, ROWS["completion"])
    write_lines(other, [GOOD])
    with pytest.raises(UserError, match=r"2\.jsonl, line 1: it has messages, and .*1\.jsonl, line 1 has prompt"):
        read_examples([one, other])


def test_labels_are_all_texts_or_all_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_lines(path, [{"text": "a", "label": 1}, {"text": "b", "label": "1"}])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: label is '1', and .*line 1 has 1; they must all be"):
        read_examples([path])


def test_what_has_no_rows_is_refused(tmp_path: Path) -> None:
    prose, empty, broken = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    prose.write_text("To be, or not to be.\n")
    empty.write_text("\n")
    broken.write_text('{"text": "a", "label": 1}\n{"text": ')
    with pytest.raises(UserError, match=r"is prose; conversations are rows of \.jsonl"):
        read_examples([prose])
    with pytest.raises(UserError, match="has no rows"):
        read_examples([empty])
    with pytest.raises(UserError, match="there are no files"):
        read_examples([])
    with pytest.raises(UserError, match="line 2, is no JSON"):
        read_examples([broken])
    with pytest.raises(UserError, match="no such file"):
        read_examples([tmp_path / "none.jsonl"])
