"""llama.cpp gives the ids, the logits and the greedy text of our models, from the GGUF files that we write.

It is asked through llama-cpp-python. PyPI has its source only, which takes half an hour to compile, so that these tests
are skipped where it is not installed. They were written with 0.3.36.
"""

from __future__ import annotations

import dataclasses
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given

from gptlab.data.chat.chat_format import ChatFormat, chat_tokenizer
from gptlab.data.chat.conversations import Message
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from gptlab.formats import gguf, open_model
from gptlab.formats.model_card import model_card
from gptlab.models import GPT
from gptlab.models.layers import gelu
from gptlab.system.errors import UserError
from tests.data.test_tokenizers import AWKWARD, TEXTS, any_text, seldom
from tests.formats.gguf_models import ENGLISH, OURS, SHAPES, THEIRS, a_model, no_info, written

pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: PyPI has no wheel of it")
EVERY = OURS | THEIRS
F32 = 0  # ggml's number of the type
T = 64


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Any]:
    """A file in llama.cpp, with keys and values in fp32, where its default is fp16."""
    both = {"n_ctx": T, "n_batch": 256, "logits_all": True, "type_k": F32, "type_v": F32} | options
    model = llama_cpp.Llama(str(path), n_threads=1, n_threads_batch=1, verbose=False, **both)
    try:
        yield model
    finally:
        model.close()


def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    """(T, V) in llama.cpp."""
    model.reset()
    model.eval(ids)
    return torch.tensor(np.array(model.scores[: len(ids)]))


def some_ids(vocab_size: int) -> list[int]:
    return torch.randint(vocab_size, (T,), generator=torch.Generator().manual_seed(3)).tolist()


def assert_same_greedy_text(theirs: Any, ours: GPT, ids: list[int], new: int, tie: float) -> None:
    """Check that both continue alike, where two tokens are not within `tie` of each other for ours."""
    for _ in range(new):
        with torch.no_grad():
            logits = ours(torch.tensor([ids]))[0, -1]
        found = int(logits_of(theirs, ids)[-1, : len(logits)].argmax())  # the ids after ours are never drawn
        assert logits.max() - logits[found] <= tie
        ids = [*ids, found]


def gelu_of_llama_cpp(x: torch.Tensor) -> torch.Tensor:
    """GELU as llama.cpp has it on a CPU: looked up in a table of fp16, by x in fp16, between -10 and 10."""
    looked_up = gelu(x.half().float()).half().float()
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, looked_up))


# Ids


@pytest.fixture(scope="module", params=EVERY)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tokenizer, Any]]:
    """A tokenizer, and the same in llama.cpp."""
    tokenizer = EVERY[request.param]()
    path = written(a_model(tokenizer, n_layer=1), tokenizer, tmp_path_factory.mktemp("vocabulary"))
    with opened(path, vocab_only=True, logits_all=False) as theirs:
        yield tokenizer, theirs


def assert_same_ids(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    if tokenizer.name == "cl100k_base":
        text = text.rstrip()  # which GPT-4's pattern takes for one piece
    if '"NFC"' in getattr(tokenizer, "content", ""):
        text = unicodedata.normalize("NFC", text)  # as Qwen's tokenizer does and llama.cpp does not
    content = text.encode()
    plain = theirs.tokenize(content, add_bos=False, special=False)
    assert plain == tokenizer.encode(text).tolist()
    assert theirs.tokenize(content, add_bos=True, special=False) == [*tokenizer.begin, *plain]
    special = theirs.tokenize(content, add_bos=False, special=True)
    assert special == tokenizer.encode_special(text).tolist()
    if not tokenizer.leading_space:
        shown = b"".join(theirs.detokenize([i], special=True) for i in special)
        assert shown.decode("utf-8", "replace") == tokenizer.decode(special)


@seldom
@given(text=any_text)
@example("'S 's \u017f 12345\r\n\n x  \n")
@example("a<|endoftext|>b <|end|> License")
def test_llama_cpp_gives_our_ids(pair: tuple[Tokenizer, Any], text: str) -> None:
    assert_same_ids(*pair, text)


@pytest.mark.parametrize("text", [*AWKWARD, *TEXTS, ENGLISH], ids=lambda text: ascii(text[:13]))
def test_llama_cpp_gives_our_ids_of_awkward_texts(pair: tuple[Tokenizer, Any], text: str) -> None:
    assert_same_ids(*pair, text)


def test_llama_cpp_gives_gpt2s_ids(data_dir: Path, tmp_path: Path) -> None:
    tokenizer = BPETokenizer.gpt2(data_dir)
    path = written(a_model(tokenizer, n_layer=1, n_embd=4), tokenizer, tmp_path)
    text = (data_dir / "tinyshakespeare.txt").read_text()[:100_000]
    with opened(path, vocab_only=True, logits_all=False) as theirs:
        for each in (text, *AWKWARD, *TEXTS):
            assert_same_ids(tokenizer, theirs, each)


# Logits


@pytest.mark.parametrize(
    ("shape", "tokenizer"),
    [(shape, "char") for shape in SHAPES]
    + [(shape, name) for shape in ("gpt2", "llama", "qwen2") for name in OURS if name not in ("char", "cl100k_base")],
)
def test_llama_cpp_gives_our_logits_and_greedy_text(tmp_path: Path, shape: str, tokenizer: str) -> None:
    ours_tokenizer = OURS[tokenizer]()
    ours = a_model(ours_tokenizer, **SHAPES[shape][1])
    ids, prompt = some_ids(ours_tokenizer.vocab_size), ours_tokenizer.encode("You may").tolist()
    tolerance = 4e-3 if shape.startswith("gpt2") else 1e-4
    with opened(written(ours, ours_tokenizer, tmp_path)) as theirs:
        assert theirs.token_eos() == theirs.token_bos() != 11
        logits = logits_of(theirs, ids)[:, : ours_tokenizer.vocab_size]
        with torch.no_grad():
            expected = ours(torch.tensor([ids]))[0]
        assert expected.std() > 1
        torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
        assert_same_greedy_text(theirs, ours, prompt, 50, tolerance if shape.startswith("gpt2") else 0.0)
        if shape.startswith("gpt2"):  # whose difference is that of GELU
            for block in ours.h:
                block.mlp.activation = gelu_of_llama_cpp
            with torch.no_grad():
                assert (ours(torch.tensor([ids]))[0] - logits).square().mean().sqrt() < 1e-4


@pytest.mark.parametrize("shape", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize(("quant", "tolerance"), [("f16", 3e-3), ("q8_0", 0.06), ("q4_0", 0.06)])
def test_llama_cpp_computes_with_quantised_weights_as_we_read_them(
    tmp_path: Path, shape: str, quant: str, tolerance: float
) -> None:
    """It rounds what it multiplies with them, too: to fp16, or to 8 bits."""
    tokenizer = OURS["char"]()
    path = written(a_model(tokenizer, **SHAPES[shape][1] | {"n_embd": 64}), tokenizer, tmp_path, quant)
    ours, ids = open_model.load_model(path)[0], some_ids(tokenizer.vocab_size)
    with torch.no_grad():
        expected = ours(torch.tensor([ids]))[0]
    with opened(path) as theirs:
        off = logits_of(theirs, ids)[:, : tokenizer.vocab_size] - expected
    assert off.std() < tolerance * expected.std()


# Chats and real models


def test_llama_cpp_asks_as_we_do(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(OURS["bpe"]())
    chat = ChatFormat(tokenizer)
    info = dataclasses.replace(no_info(tmp_path), read_chat=lambda: chat)
    gguf.write_gguf(a_model(tokenizer, block_size=256), tokenizer, info, tmp_path)
    messages = [Message("user", "You may"), Message("assistant", "copy"), Message("user", "it")]
    with opened(tmp_path / "model.gguf", n_ctx=256) as theirs:
        asked = theirs.create_chat_completion([dict(message._asdict()) for message in messages], max_tokens=3)
        assert asked["usage"]["prompt_tokens"] == len(chat.prompt(messages))
        assert theirs.input_ids[: len(chat.prompt(messages))].tolist() == chat.prompt(messages).tolist()
        ends = [i for i in range(tokenizer.vocab_size) if llama_cpp.llama_vocab_is_eog(theirs._model.vocab, i)]
    assert {*ends} == {*chat.ends}


def test_a_file_that_llama_cpp_has_requantised_is_read(tmp_path: Path) -> None:
    tokenizer = OURS["bpe"]()
    ours = a_model(tokenizer, **SHAPES["llama"][1] | {"n_embd": 64, "n_inner": 256})
    path = written(ours, tokenizer, tmp_path)
    for number, name in ((7, "q8_0"), (15, "q4_k"), (1, "f16")):
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize, options.nthread = number, True, 1
        source = tmp_path / "q4_k.gguf" if name == "f16" else path
        out = tmp_path / f"{name}.gguf"
        assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), options) == 0
    with pytest.raises(UserError, match="llama-quantize --allow-requantize"):
        open_model.load_model(tmp_path / "q4_k.gguf")
    idx = torch.tensor([some_ids(tokenizer.vocab_size)])
    for name, tolerance in (("q8_0", 0.05), ("f16", 0.5)):
        model, again, _ = open_model.load_model(tmp_path / f"{name}.gguf")
        assert again.to_dict() == tokenizer.to_dict()
        with torch.no_grad():
            assert (model(idx) - ours(idx)).std() < tolerance * ours(idx).std()


def test_the_cards_python_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = CharTokenizer.fit([ENGLISH, "To be"])
    ours = a_model(tokenizer)
    written(ours, tokenizer, tmp_path / "out")
    card = model_card(ours, tokenizer, no_info(tmp_path), "gguf", "out")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of llama_cpp, which leaves /dev/null open
        exec(card.split("```python\n")[1].split("```")[0], {})
    said = capsys.readouterr().out
    assert said.startswith("To be")
    assert len(said) > len("To be\n")


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), ("arch=llama",)], ids=["gpt2", "llama"])
def test_llama_cpp_continues_a_trained_model_as_we_do(
    command: Any, tmp_path: Path, data_dir: Path, shape: tuple[str, ...]
) -> None:
    """Three hundred steps on Shakespeare's characters; the greedy text of both, letter by letter."""
    sizes = ("model.n_layer=2", "model.n_embd=64", "model.block_size=128", "trainer=cpu", "trainer.max_steps=300")
    data = ("data=shakespeare_char", f"data.dir={data_dir}", f"data.cache_dir={tmp_path / 'cache'}")
    result = command("train", *data, *sizes, *shape, "hydra.run.dir=run", "trainer.val_every=300")
    assert result.returncode == 0, result.stderr
    assert command("export", "run", "out", "--format", "gguf").returncode == 0
    prompt = "ROMEO:\nWhat"
    said = command("generate", "run", prompt, "--temperature", "0", "--max-new-tokens", "100")
    with opened(tmp_path / "out" / "model.gguf", logits_all=False) as theirs:
        text = theirs(prompt, max_tokens=100, temperature=0)["choices"][0]["text"]
    assert len(text) == 100
    assert prompt + text in said.stdout
