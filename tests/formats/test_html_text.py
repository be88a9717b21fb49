"""The page's tokenizers and its sampling in JavaScript beside gptlab's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gptlab.data.tokenizers import (
    CL100K_PATTERN,
    CL100K_SPECIAL,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
)
from gptlab.formats.html.content import tokenizer_of
from gptlab.generation.decoding import prompt_ids
from gptlab.generation.random_numbers import RandomNumbers
from gptlab.generation.sampling import Sampling
from gptlab.generation.text_stream import TextStream
from tests.data.test_tokenizers import AWKWARD, ENGLISH, TEXTS, any_text
from tests.formats.javascript import needs_node, run_node

pytestmark = needs_node

ODD = "'\u017f' 'S 'LL 've\u00b2\u2167\u0660x_y \x1c\x1f \u180e\u200b\ufeff\u0345\u20ac\u00ad 12345 \r\n \n\n  end  "
LEARNED = ENGLISH + ODD + "".join(AWKWARD)
BPE = BPETokenizer.fit([LEARNED], 500)
TOKENIZERS = {
    "char": CharTokenizer.fit([LEARNED.encode("utf-8", "ignore").decode()]),
    "char, more": CharTokenizer.fit([ENGLISH], end_of_text=True).with_special(["<|user|>", "<|end|>"]),
    "byte": ByteTokenizer(),
    "byte, ended": ByteTokenizer(end_of_text=True),
    "word": WordTokenizer.fit([LEARNED], 300, end_of_text=True),
    "bpe": BPE,
    "bpe, more": BPE.with_special(["<|user|>"]),
    "cl100k": BPETokenizer("cl100k_base", BPE.merges, CL100K_PATTERN, CL100K_SPECIAL),
}
TEXT_ANSWER = """
function answer({ descriptions, texts, ids }) {
  const found = {};
  for (const [name, description] of Object.entries(descriptions)) {
    const tokenizer = new Tokenizer(description);
    const streamed = (some) => {
      const stream = new TextStream(tokenizer);
      return some.map((id) => stream.add(id)).join("");
    };
    found[name] = {
      encoded: texts.map((text) => tokenizer.encode(text)),
      prompts: texts.map((text) => tokenizer.prompt(text)),
      unknown: texts.map((text) => tokenizer.unknown(text)),
      decoded: ids[name].map((some) => tokenizer.decode(some)),
      streamed: ids[name].map(streamed),
    };
  }
  return found;
}
"""


def compare(texts: list[str], seed: int) -> None:
    draw = np.random.default_rng(seed)
    drawn = {
        name: [draw.integers(0, tokenizer.vocab_size, n).tolist() for n in (0, 1, 9, 60)]
        for name, tokenizer in TOKENIZERS.items()
    }
    drawn = {
        name: some + [tokenizer.encode(text).tolist() for text in texts]
        for (name, tokenizer), some in zip(TOKENIZERS.items(), drawn.values(), strict=True)
    }
    descriptions = {name: json.loads(json.dumps(tokenizer_of(each))) for name, each in TOKENIZERS.items()}
    found = run_node(TEXT_ANSWER, {"descriptions": descriptions, "texts": texts, "ids": drawn})
    for name, tokenizer in TOKENIZERS.items():
        theirs = found[name]
        for i, text in enumerate(texts):
            assert theirs["encoded"][i] == tokenizer.encode(text).tolist(), (name, text)
            assert theirs["prompts"][i] == prompt_ids(tokenizer, text), (name, text)
            assert sorted(theirs["unknown"][i]) == tokenizer.unknown(text), (name, text)
        assert theirs["decoded"] == [tokenizer.decode(ids) for ids in drawn[name]], name
        for ids, streamed in zip(drawn[name], theirs["streamed"], strict=True):
            stream = TextStream(tokenizer, begins=name == "word", ends=())
            for i in ids:
                stream.add(i)
            assert stream.text.startswith(streamed), (name, ids)  # which leaves out half a character at the end


def test_awkward_texts_have_gptlabs_ids() -> None:
    compare([*TEXTS, *AWKWARD, ODD, ENGLISH[:2000]], 1)


@settings(max_examples=2, deadline=None, phases=[Phase.generate], derandomize=True)
@given(st.lists(any_text, min_size=60, max_size=60))
def test_any_text_has_gptlabs_ids(texts: list[str]) -> None:
    compare(texts, 2)


SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 0.5, "top_k": 3},
    {"temperature": 1.9, "top_k": 400},
    {"top_p": 0.7},
    {"top_p": 1e-9},
    {"min_p": 0.2},
    {"temperature": 1e-8, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 0.8},
]
NAMES = {"top_k": "topK", "top_p": "topP", "min_p": "minP", "repetition_penalty": "repetitionPenalty"}
DRAW_ANSWER = """
function answer({ logits, ids, samplings, seeds }) {
  const rows = logits.map((row) => Float32Array.from(row));
  return {
    probabilities: samplings.map((how) => rows.map((row) => [...probabilities(row, how, ids)])),
    numbers: seeds.map((seed) => {
      const numbers = new RandomNumbers(seed);
      return Array.from({ length: 700 }, () => numbers.draw());
    }),
    drawn: samplings.map((how) => {
      const numbers = new RandomNumbers(5);
      return rows.map((row) => draw(row, how, ids, numbers));
    }),
    likeliest: rows.map((row) => likeliest(row, 5)),
  };
}
"""


def test_probabilities_and_draws_are_gptlabs() -> None:
    logits = np.random.default_rng(3).normal(size=(40, 61)).astype(np.float32) * 3
    ids, seeds = [3, 5, 5, 60, 7], [0, 5, 1337, 2**32 + 5, 2**53 - 1]
    hows = [{NAMES.get(name, name): value for name, value in each.items()} for each in SAMPLINGS]
    found = run_node(DRAW_ANSWER, {"logits": logits.tolist(), "ids": ids, "samplings": hows, "seeds": seeds})
    for seed, theirs in zip(seeds, found["numbers"], strict=True):
        numbers = RandomNumbers(seed)
        assert theirs == [numbers.draw() for _ in range(700)]
    for each, theirs, drawn in zip(SAMPLINGS, found["probabilities"], found["drawn"], strict=True):
        sampling, numbers = Sampling(**each), RandomNumbers(5)
        for row, probabilities, token in zip(logits, theirs, drawn, strict=True):
            np.testing.assert_allclose(probabilities, sampling.probabilities(row[None], [ids])[0], atol=1e-6, rtol=0)
            assert token == sampling.draw(row[None], [numbers], [ids])[0]
    assert found["likeliest"] == np.argsort(-logits, kind="stable")[:, :5].tolist()


@pytest.mark.parametrize("value", ["Infinity", "NaN"])
def test_a_model_that_has_diverged_says_so(value: str) -> None:
    answer = f"""
    function answer() {{
      try {{ draw(Float32Array.of(1, {value}), {{ temperature: 1 }}, [], new RandomNumbers(1)); }}
      catch (error) {{ return error.message; }}
    }}
    """
    assert "no numbers" in run_node(answer, None)
