"""What is longer than a row is cut so that its answer stays, or refused, and is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from gptlab.data.chat.chat_format import Encoded
from gptlab.data.chat.conversations import Conversation, Labelled
from gptlab.data.chat.encoding import (
    ALIKE,
    LEFT_OUT,
    SHORTENED,
    encode_conversations,
    encode_labelled,
    encode_preferences,
    fitting,
)
from gptlab.data.tokenizers import CharTokenizer
from gptlab.system.errors import UserError
from tests.data.chat.helpers import CHAT, pair, shown, talk


def encode(block_size: int, *conversations: Conversation, **options: Any) -> tuple[list[str], Counter[str]]:
    """The encoded conversations as texts, with what counts between brackets; and what is counted."""
    counts: Counter[str] = Counter()
    found = encode_conversations(conversations, CHAT, block_size, counts, **options)
    assert all(len(each.ids) <= block_size + 1 for each in found)
    return [bracketed(each) for each in found], counts


def bracketed(encoded: Encoded) -> str:
    pieces = [shown([i]) for i in encoded.ids.tolist()]
    edges = np.diff(encoded.counted.astype(int), prepend=0, append=0)
    signs = {1: "[", -1: "]", 0: ""}
    return "".join(signs[int(edge)] + piece for edge, piece in zip(edges, [*pieces, ""], strict=True))


EXCHANGE = "^U:abc$A:[de$]"  # 10 tokens
LENGTH = 10


def test_a_conversation_of_one_more_token_than_the_row_has_inputs_fits() -> None:
    """Fault 5: a sample of block_size + 1 tokens is dropped, although its inputs and its targets fit."""
    assert encode(LENGTH - 1, talk("abc", "de")) == ([EXCHANGE], Counter())
    cut, counts = encode(LENGTH - 2, talk("abc", "de"))
    assert (cut, counts) == (["^U:bc$A:[de$]"], Counter({SHORTENED: 1}))


@pytest.mark.parametrize("block_size", range(8, 35))
def test_an_answer_stays_whole_at_every_block_size(block_size: int) -> None:
    """Faults 3 and 4: after cutting nothing counts, and the loss is 0/0; or the answer is cut away."""
    (found,), counts = encode(block_size, talk("first", "one", "second", "two", system="be"))
    assert found.endswith("$A:[two$]")
    assert found.startswith(("^U:", "^S:be$U:"))
    assert counts == ({} if block_size >= 29 else {SHORTENED: 1})


@pytest.mark.parametrize("block_size", range(1, 8))
def test_rows_without_a_place_for_an_answer_leave_it_out(block_size: int) -> None:
    assert encode(block_size, talk("first", "one", "second", "two", system="be")) == ([], {LEFT_OUT: 1})


def test_the_oldest_goes_first() -> None:
    said = talk("first", "one", "second", "two", system="be")
    assert {size: encode(size, said)[0][0] for size in (29, 28, 17, 16, 12, 11, 8)} == {
        29: "^S:be$U:first$A:[one$]U:second$A:[two$]",
        28: "^S:be$U:second$A:[two$]",
        17: "^S:be$U:second$A:[two$]",
        16: "^S:be$U:econd$A:[two$]",
        12: "^S:be$U:d$A:[two$]",
        11: "^U:cond$A:[two$]",
        8: "^U:d$A:[two$]",
    }


def test_a_short_message_of_the_system_stays_where_the_last_message_is_cut() -> None:
    assert encode(19, talk("x" * 50, "two", system="be"))[0] == ["^S:be$U:" + "x" * 8 + "$A:[two$]"]
    assert encode(19, talk("x" * 50, "two", system="y" * 50))[0] == ["^U:" + "x" * 12 + "$A:[two$]"]


def test_what_is_given_stays_so_after_a_cut() -> None:
    said = talk("a", "b", "c", "d", "e", "f", given=3)
    assert encode(99, said)[0] == ["^U:a$A:b$U:c$A:[d$]U:e$A:[f$]"]
    assert encode(14, said)[0] == ["^U:c$A:[d$]U:e$A:[f$]"]
    assert encode(99, talk("a", "b", "c", "d", given=3))[0] == ["^U:a$A:b$U:c$A:[d$]"]
    assert encode(12, talk("aaa", "b", "c", "d", given=3))[0] == ["^U:c$A:[d$]"]


def test_an_answer_that_is_too_long_is_left_out_and_counted() -> None:
    found, counts = encode(12, talk("a", "b" * 50), talk("a", "b"), talk("a" * 50, "b"))
    assert len(found) == 2
    assert counts == {LEFT_OUT: 1, SHORTENED: 1}


def test_what_is_too_long_is_refused_where_that_is_asked_for() -> None:
    said = Conversation(talk("abc", "de").messages, where="a.jsonl, line 7")
    assert encode(9, said, too_long="refuse")[0] == [EXCHANGE]
    with pytest.raises(
        UserError, match=r"line 7: it has 10 tokens, and a row of model.block_size=8 holds 9; .*task.too_long=cut"
    ):
        encode(8, said, too_long="refuse")
    with pytest.raises(UserError, match=r"task.too_long=drop: must be one of cut, refuse"):
        encode(8, said, too_long="drop")


def test_the_loss_can_be_on_all_tokens() -> None:
    assert encode(9, talk("abc", "de"), loss_on_all=True)[0] == ["^[U:abc$A:de$]"]


def test_what_teaches_nothing_is_refused() -> None:
    said = Conversation(talk("a", "b").messages, given=2, where="a.jsonl, line 3")
    with pytest.raises(UserError, match="line 3: nothing in it counts"):
        encode(9, said)


def test_both_answers_of_a_pair_count_whole() -> None:
    """Fault 8: `chosen` loses its first tokens where the beginning that both share is cut away."""
    counts: Counter[str] = Counter()
    (found,) = encode_preferences([pair("abc", "share", "shame")], CHAT, 99, counts)
    assert [bracketed(each) for each in found.both] == ["^U:abc$A:[share$]", "^U:abc$A:[shame$]"]
    assert not counts


def test_both_answers_of_a_pair_keep_the_same_prompt() -> None:
    counts: Counter[str] = Counter()
    pairs = [pair("abcdef", "a", "bcde"), pair("a", "b", "c"), pair("a", "b", "c" * 20)]
    found = encode_preferences(pairs, CHAT, 11, counts)
    assert [[bracketed(side) for side in each.both] for each in found] == [
        ["^U:def$A:[a$]", "^U:def$A:[bcde$]"],
        ["^U:a$A:[b$]", "^U:a$A:[c$]"],
    ]
    assert counts == {SHORTENED: 1, LEFT_OUT: 1}


@pytest.mark.parametrize("block_size", range(4, 30))
def test_a_conversation_that_is_to_be_answered_is_cut_as_one_that_is_learned(block_size: int) -> None:
    for each in (talk("oh", "abc", "a b", "de", system="!"), talk("abcdefgh", "ij", "k", "l", given=3)):
        counts: Counter[str] = Counter()
        found = fitting(each, CHAT, block_size)
        encoded = encode_conversations([each], CHAT, block_size, counts)
        assert (found is None) == (not encoded)
        if found is None:
            continue
        ((ids, counted),) = encoded
        again = CHAT.encode(found.messages, found.given)
        assert (again.ids.tolist(), again.counted.tolist()) == (ids.tolist(), counted.tolist())


def test_a_pair_whose_answers_are_the_same_tokens_is_left_out_and_counted() -> None:
    """Such as those that differ in characters that the tokenizer lacks: neither is better."""
    counts = Counter[str]()
    pairs = [pair("a", "b\u65e5", "b\u672c"), pair("a", "b\u65e5", "c"), pair("a" * 50, "b\u65e5", "b")]
    (found,) = encode_preferences(pairs, CHAT, 20, counts)
    assert [bracketed(each) for each in found.both] == ["^U:a$A:[b$]", "^U:a$A:[c$]"]
    assert counts == {ALIKE: 2, SHORTENED: 1}


def test_a_pair_whose_end_is_a_target_only_may_have_one_token_more_than_one_whose_end_is_read() -> None:
    """Fault 5: off by one at the limit. ^U:abc$A:de$ has 10 tokens."""
    both, counts = [pair("abc", "de", "f")], Counter[str]()
    whole = ["^U:abc$A:[de$]", "^U:abc$A:[f$]"]
    for block_size, end_is_read in ((9, False), (10, True)):
        (found,) = encode_preferences(both, CHAT, block_size, counts, end_is_read=end_is_read)
        assert [bracketed(each) for each in found.both] == whole
        assert not counts
    (cut,) = encode_preferences(both, CHAT, 9, counts, end_is_read=True)
    assert [bracketed(each) for each in cut.both] == ["^U:bc$A:[de$]", "^U:bc$A:[f$]"]
    assert counts == {SHORTENED: 1}
    with pytest.raises(UserError, match=r"it has 10 tokens, and a row of model.block_size=9 holds 9; shorten it"):
        encode_preferences(both, CHAT, 9, counts, too_long="refuse", end_is_read=True)


class Begun(CharTokenizer):
    """A tokenizer that begins each text, as Llama's does."""

    begin = (7, 8)


TEXTS = [Labelled("abcde", "ham"), Labelled("ab", "spam", "a.csv, line 3")]


def test_a_labelled_text_is_its_tokens_and_the_number_of_its_class() -> None:
    counts: Counter[str] = Counter()
    plain = CharTokenizer("abcde")
    found = encode_labelled(TEXTS, plain, ["ham", "spam"], 5, counts)
    assert [(each.ids.tolist(), each.label) for each in found] == [([0, 1, 2, 3, 4], 0), ([0, 1], 1)]
    assert not counts
    assert [each.label for each in encode_labelled(TEXTS, plain, ["eggs", "spam", "ham"], 5, counts)] == [2, 1]


def test_a_long_text_keeps_its_beginning_after_what_begins_each() -> None:
    counts: Counter[str] = Counter()
    found = encode_labelled(TEXTS, Begun("abcde"), ["ham", "spam"], 5, counts)
    assert [each.ids.tolist() for each in found] == [[7, 8, 0, 1, 2], [7, 8, 0, 1]]
    assert found[1].ids.dtype == np.int64
    assert counts == {SHORTENED: 1}


def test_texts_without_a_token_or_a_class_or_a_place_are_refused() -> None:
    plain, counts = CharTokenizer("abcde"), Counter[str]()
    with pytest.raises(UserError, match=r"a.csv, line 3: the label 'spam' is none of the training part's: 'ham', 'eg"):
        encode_labelled(TEXTS, plain, ["ham", "eggs"], 9, counts)
    for tokenizer in (plain, Begun("abcde")):
        with pytest.raises(UserError, match=r"b.csv, line 1: the tokenizer knows nothing in '123'; leave it out"):
            encode_labelled([Labelled("123", "ham", "b.csv, line 1")], tokenizer, ["ham"], 9, counts)
    with pytest.raises(
        UserError, match=r"a labelled text: it has 5 tokens, and a row holds model.block_size=4; .*task.too_long=cut"
    ):
        encode_labelled(TEXTS, plain, ["ham", "spam"], 4, counts, too_long="refuse")
    assert len(encode_labelled(TEXTS, plain, ["ham", "spam"], 5, counts, too_long="refuse")) == 2
    with pytest.raises(UserError, match=r"task.too_long=drop: must be one of"):
        encode_labelled(TEXTS, plain, ["ham", "spam"], 4, counts, too_long="drop")
