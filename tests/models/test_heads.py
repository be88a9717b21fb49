"""Heads for classes, rewards and values: the last real token is judged, the GPT is shared, a checkpoint has it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gptlab import models
from gptlab.data.tokenizers import CharTokenizer
from gptlab.formats import checkpoint, description
from gptlab.formats.open_model import load_headed, load_model
from gptlab.models import GPT, Bigram, BigramConfig, GPTConfig, HeadConfig, HeadedConfig, HeadedGPT
from gptlab.models.freezing import train_only
from gptlab.models.lora import LoRAConfig, adapters_off, add_adapters
from gptlab.system.errors import UserError

V, T = 23, 11
CLASSES = HeadConfig("classify", ("ham", "spam", "eggs"))
REWARD, VALUE = HeadConfig("reward"), HeadConfig("value")
LENGTHS = torch.tensor([3, 11, 1, 7])


def gpt(**fields: Any) -> GPT:
    torch.manual_seed(5)
    model = GPT(GPTConfig(V, T, n_layer=2, n_head=3, n_embd=24, **fields))
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape), alpha=0.1)
    return model.eval()


def headed(head: HeadConfig, **fields: Any) -> HeadedGPT:
    return HeadedGPT(gpt(**fields), head).eval()


def texts(padding: int | None = None) -> Tensor:
    """Four texts of `LENGTHS`, and behind each of them padding; None: any tokens."""
    generator = torch.Generator().manual_seed(2)
    idx = torch.randint(V, (4, T), generator=generator)
    rest = torch.randint(V, (4, T), generator=generator) if padding is None else torch.full((4, T), padding)
    return torch.where(torch.arange(T) < LENGTHS[:, None], idx, rest)


@pytest.mark.parametrize("head", [CLASSES, REWARD])
def test_the_last_real_token_is_judged_and_not_the_padding(head: HeadConfig) -> None:
    """Each text alone, without padding, has the same scores; read at the row's end, it would not."""
    model = headed(head)
    scores = model(texts(padding=0), LENGTHS)
    assert scores.shape == ((4, 3) if head is CLASSES else (4,))
    alone = [model(texts()[i : i + 1, :n], torch.tensor([n])) for i, n in enumerate(LENGTHS.tolist())]
    torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-5, atol=1e-6)
    for padding in (7, None):
        torch.testing.assert_close(scores, model(texts(padding), LENGTHS), rtol=1e-6, atol=1e-7)
    assert (scores[0] - model(texts(padding=0), torch.full((4,), T))[0]).abs().max() > 1e-3


def test_scores_are_those_of_transformers() -> None:
    """Logits and gradients of GPT2ForSequenceClassification, whose padding token tells where a text ends."""
    transformers = pytest.importorskip("transformers")
    ours = headed(CLASSES)
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_layer=2, n_head=3, n_embd=24, num_labels=3, pad_token_id=0
    )
    theirs = transformers.GPT2ForSequenceClassification(config).eval()
    state = {f"transformer.{name}": each for name, each in ours.gpt.state_dict().items() if name != "lm_head.weight"}
    turned = {name: each.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else each
              for name, each in state.items()}  # fmt: skip
    theirs.load_state_dict(turned | {"score.weight": ours.score.weight})
    idx = texts(padding=0).where(torch.arange(T) >= LENGTHS[:, None], texts().clamp(min=1))
    scores, others = ours(idx, LENGTHS), theirs(input_ids=idx).logits
    torch.testing.assert_close(scores, others, rtol=1e-5, atol=1e-5)
    for each in (scores, others):
        F.cross_entropy(each, torch.tensor([0, 2, 1, 1])).backward()
    torch.testing.assert_close(ours.score.weight.grad, theirs.score.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.gpt.wte.weight.grad, theirs.transformer.wte.weight.grad, rtol=1e-5, atol=1e-5)


def test_the_first_token_has_seen_nothing_else() -> None:
    model = headed(HeadConfig("classify", ("a", "b"), "first"))
    one, other = texts(), texts()
    other[:, 1:] = (other[:, 1:] + 1) % V
    assert torch.equal(model(one), model(other))
    other[:, 0] = (other[:, 0] + 1) % V
    assert not torch.equal(model(one), model(other))


def test_a_value_head_judges_each_position_beside_the_policy() -> None:
    model = headed(VALUE)
    idx = texts()
    values = model(idx)
    assert values.shape == (4, T)
    x = model.features(idx)
    assert torch.equal(model.scores(x), values)
    assert torch.equal(model.head(x), gpt()(idx))
    by_hand = model.gpt.ln_f(x).double() @ model.score.weight.double()[0]
    torch.testing.assert_close(values.double(), by_hand, rtol=1e-5, atol=1e-5)


def test_lengths_that_no_text_has_are_refused() -> None:
    model = headed(REWARD)
    with pytest.raises(ValueError, match="needs its length"):
        model(texts())
    for wrong in (0, T + 1):
        with pytest.raises(RuntimeError, match="out of bounds"):
            model(texts(), torch.tensor([3, wrong, 1, 7]))


def test_the_gpt_is_shared_and_not_copied() -> None:
    base = gpt()
    model = HeadedGPT(base, REWARD)
    assert model.gpt is base
    assert model.num_parameters() == base.num_parameters() + 24
    before = model(texts(), LENGTHS)
    with torch.no_grad():
        base.h[0].mlp.c_fc.weight.mul_(1.5)
    assert not torch.equal(model(texts(), LENGTHS), before)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [CLASSES, HeadConfig("classify", ("a", "b"), "first"), REWARD, VALUE])
def test_a_checkpoint_brings_it_back(tmp_path: Path, head: HeadConfig, tied: bool) -> None:
    """Fault 23: every field of the head is written, and none is guessed where the file lacks it."""
    model, tokenizer = headed(head, tied=tied, pos="rope"), CharTokenizer("abcdefghijklmnopqrstuvw")
    about = checkpoint.describe(model, tokenizer, {}, None, 3, {"val/loss": 0.5})
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    file = tmp_path / "last.ckpt"
    checkpoint.save_checkpoint({description.KEY: about, "state_dict": weights}, file)
    again, their_tokenizer, info = load_headed(file)
    assert again.config == model.config == HeadedConfig(gpt(tied=tied, pos="rope").config, head)
    assert their_tokenizer.to_dict() == tokenizer.to_dict()
    assert info.step == 3
    assert torch.equal(again(texts(), LENGTHS), model(texts(), LENGTHS))
    if head is VALUE:
        policy, _, _ = load_model(file)
        assert torch.equal(policy(texts()), model.gpt(texts()))
    else:
        word = "classifier" if head.labels else "reward model"
        with pytest.raises(UserError, match=rf"last\.ckpt is a {word}, whose outputs are no text: give a language"):
            load_model(file)
    del weights["model.score.weight"]
    checkpoint.save_checkpoint({description.KEY: about, "state_dict": weights}, file)
    with pytest.raises(UserError, match=r"score\.weight is missing"):
        load_headed(file)


def test_a_language_model_has_no_head(trained: Path) -> None:
    with pytest.raises(UserError, match="this model has no head for another task: it is a language model"):
        load_headed(trained)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"kind": "reward", "labels": [], "position": "last", "colour": 1},
            r"the head has .*colour; this version's has",
        ),
        ({"kind": "reward", "labels": []}, r"the head has kind, labels; this version's has kind, labels, position"),
        ({"kind": "classify", "labels": ["a", 1], "position": "last"}, r"head.labels: must be a list of names"),
        ({"kind": [], "labels": [], "position": "last"}, r"head.kind=\[\]: no such head"),
    ],
)
def test_a_damaged_head_is_refused(head: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.headed_from_dict(models.to_dict(gpt().config) | {"head": head})


def test_only_a_gpt_can_have_one() -> None:
    with pytest.raises(UserError, match=r"model.name=bigram: heads are for a GPT"):
        models.headed_from_dict(
            models.to_dict(BigramConfig(V)) | {"head": {"kind": "reward", "labels": [], "position": "last"}}
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "clasify"}, r"head.kind=clasify: no such head; did you mean classify\?"),
        ({"kind": "reward", "position": "middle"}, r"head.position=middle: must be one of last, first"),
        ({"kind": "value", "position": "first"}, r"head.position=first: a value head judges each position"),
        ({"kind": "reward", "labels": ("a", "b")}, r"head.labels=a,b: is of head.kind=classify"),
        ({"kind": "classify", "labels": ("a",)}, r"head.labels=a: must be at least 2 different labels"),
        ({"kind": "classify", "labels": ("a", "b", "a")}, r"head.labels: a is there twice"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HeadConfig(**fields)


def trained_names(model: Any) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [None, CLASSES, REWARD, VALUE])
def test_what_is_trained_gets_a_gradient_and_nothing_else_changes(head: HeadConfig | None, tied: bool) -> None:
    for part in ("all", "last_block", "head"):
        model: Any = gpt(tied=tied) if head is None else headed(head, tied=tied)
        names, prefix = set(dict(model.named_parameters())), "" if head is None else "gpt."
        lm_head = set() if tied else {f"{prefix}lm_head.weight"}
        heads = set() if head is None else {"score.weight"}
        logits = head in (None, VALUE)
        if part == "head" and tied and logits:
            with pytest.raises(UserError, match=r"task.train=head: the head of this model is its embedding"):
                train_only(model, part)
            continue
        train_only(model, part)
        block = {name for name in names if name.startswith((f"{prefix}h.1.", f"{prefix}ln_f."))}
        heads |= lm_head if logits else set()
        expected = {"all": names - (set() if logits else lm_head), "head": heads, "last_block": heads | block}[part]
        assert trained_names(model) == expected
        x = (model if head is None else model.gpt).features(texts())
        loss = model.head(x).logsumexp(-1).mean() if logits else 0.0
        loss = loss if head is None else loss + model.scores(x, LENGTHS).square().mean()
        loss.backward()
        assert {name for name, each in model.named_parameters() if each.grad is not None} == expected
        train_only(model, "all")
        assert trained_names(model) == names - (set() if logits else lm_head)


def test_parts_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"task.train=last_blok: no such part; did you mean last_block\?"):
        train_only(gpt(), "last_blok")
    with pytest.raises(UserError, match=r"task.train=head: a Bigram is one table; use task.train=all"):
        train_only(Bigram(BigramConfig(V)), "head")
    train_only(Bigram(BigramConfig(V)), "all")


def test_a_head_learns_on_adapters() -> None:
    """Head and adapters are trained together; the frozen base stays the reference of the policy."""
    base, reference = gpt(), gpt()
    add_adapters(base, LoRAConfig(2, 4.0))
    model = HeadedGPT(base, REWARD).train()
    trained = [each for each in model.parameters() if each.requires_grad]
    assert sum(each.numel() for each in trained) == 24 + 2 * 2 * 2 * 2 * 24
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    wanted = torch.tensor([1.0, -1.0, 1.0, -1.0])
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(model(texts(padding=0), LENGTHS), wanted)
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    with adapters_off(model):
        assert torch.equal(model.head(model.features(texts())), reference(texts()))


def test_flops_leave_out_what_is_not_used() -> None:
    base = gpt()
    assert headed(REWARD).flops_per_token() == base.flops_per_token() - 6 * V * 24
    assert headed(VALUE).flops_per_token() == base.flops_per_token() + 6 * 24


def test_muon_finds_the_matrices_of_the_blocks() -> None:
    model = headed(REWARD)
    assert list(models.matrices(model).values()) == list(models.matrices(gpt()).values())
    train_only(model, "last_block")
    assert set(models.matrices(model)) == {each for each in model.gpt.h[1].parameters() if each.dim() == 2}
