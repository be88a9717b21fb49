"""What a policy learns from its answers: the gradient by enumeration, every number of a step by hand, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.alignment.reference import Reference
from gptlab.alignment.rewards import Answer
from gptlab.alignment.scoring import Scorer
from gptlab.data.chat.batches import PromptBatch
from gptlab.models import Network
from gptlab.models.heads import HeadConfig, HeadedGPT, language_model
from gptlab.training.objectives.base import MicroLoss
from gptlab.training.objectives.next_token import NextToken
from gptlab.training.objectives.policy import Policy
from gptlab.training.tasks import GRPOConfig, PolicyConfig, PPOConfig
from tests.alignment.policies import END_ID, IDS, PROMPTS, A, B, of_shares, tiny_gpt
from tests.data.chat.helpers import CHAT

COMMON: dict[str, Any] = {"loss_on": "answers", "too_long": "cut", "pack": False, "check": 1, "samples": 1}


def grpo(**changes: Any) -> GRPOConfig:
    return GRPOConfig(name="grpo", answer_tokens=6, **COMMON, **changes)


def ppo(**changes: Any) -> PPOConfig:
    return PPOConfig(**{"name": "ppo", "answer_tokens": 6, **COMMON, "updates": 1, **changes})


def count_a(answers: Any) -> list[float]:
    return [each.text.count("a") + 0.25 * each.text.count("b") - 0.1 * len(each.text) for each in answers]


def rewards_of(texts: list[str]) -> list[float]:
    return count_a([Answer("", text) for text in texts])


def policy_of(task: PolicyConfig, first: Network, answers: int, rule: Any = count_a, prompts: int = 4) -> Policy:
    """A policy that answers the prompts, and whose reference is `first`."""
    scorer = Scorer(CHAT.tokenizer, rule)
    reference = Reference(language_model(first))
    known = PROMPTS[:prompts], IDS[:prompts]
    return Policy(task, 1, answers, CHAT, *known, scorer, reference, NextToken(CHAT.tokenizer), False)


def step_loss(policy: Policy, model: Network, step: int = 0, micro_batches: int = 1) -> list[MicroLoss]:
    """The losses of the micro-batches of a step, all answers in one process."""
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=micro_batches,
        world_size=1,
        lightning_module=SimpleNamespace(bad_step=torch.tensor(-1)),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    count, size = policy.batch_size // policy.task.group, policy.batch_size // micro_batches
    numbers = tuple(i % len(policy.prompts) for i in range(count))
    return [
        policy.loss(model, PromptBatch(step, i, numbers, slice(i * size, (i + 1) * size), 0), trainer)
        for i in range(micro_batches)
    ]


def gradient(loss: Tensor, model: Network) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters)])  # noqa: B905


def projections(gradients: list[Tensor], expected: Tensor) -> tuple[float, float]:
    """How much of `expected` is in the gradients, as a share of it: the mean, and its standard error."""
    shares = torch.stack(gradients).double() @ expected.flatten() / expected.square().sum()
    return float(shares.mean()), float(shares.std() / len(shares) ** 0.5)


SHARES = {A: 0.3, B: 0.5, END_ID: 0.2}
TOKENS = {A: "a", B: "b", END_ID: ""}


def expected_reward(table: Tensor, tokens: int) -> Tensor:
    """The expected reward of an answer of at most 2 tokens by the bigram `table`, over all answers, in float64."""
    logprobs = table.log_softmax(-1)
    begin, total = IDS[0][-1], torch.zeros((), dtype=torch.float64)
    for first in SHARES:
        p = logprobs[begin, first].exp()
        if first == END_ID or tokens == 1:
            total = total + p * rewards_of([TOKENS[first]])[0]
            continue
        for second in SHARES:
            total = total + p * logprobs[first, second].exp() * rewards_of([TOKENS[first] + TOKENS[second]])[0]
    return total


@pytest.mark.parametrize(("baseline", "share"), [("leave_one_out", 1.0), ("mean", 3 / 4)])
def test_the_mean_gradient_of_grpo_is_that_of_the_expected_reward(baseline: str, share: float) -> None:
    """Over all answers by enumeration; the mean of the group holds the answer itself, which takes 1 / group of it."""
    model = of_shares(SHARES)
    table = model.wte.weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(expected_reward(table, 2), [table])
    task = replace(grpo(group=4, baseline=baseline, normalise="constant"), answer_tokens=2)
    policy = policy_of(task, model, 400, prompts=1)
    found = [gradient(step_loss(policy, model, step)[0].loss, model) for step in range(60)]
    mean, error = projections([-2 * each for each in found], expected)  # a loss, divided by the 2 tokens
    assert error < 0.02
    assert mean == pytest.approx(share, abs=4 * error)
    at = expected.flatten().abs().argsort(descending=True)[:9]
    values = -2 * torch.stack(found)[:, at].double()
    errors = values.std(0) / len(found) ** 0.5
    assert ((values.mean(0) - share * expected.flatten()[at]).abs() < 4 * errors + 1e-6).all()


def test_the_penalty_in_the_reward_has_the_gradient_of_the_divergence() -> None:
    """Fault 13: the exact sum as a token's reward does not depend on that token, and its expected gradient is 0."""
    first = tiny_gpt()
    model = HeadedGPT(tiny_gpt(seed=1, spread=7), HeadConfig("value")).train()
    task = ppo(kl_reward=0.5, value_coef=0.0, whiten=False, clip=None, lam=1.0)
    policy = policy_of(replace(task, answer_tokens=1), first, 200, rule=lambda answers: [0.0] * len(answers), prompts=1)
    idx = torch.tensor([IDS[0]])
    p = model.head(model.features(idx))[0, -1].log_softmax(-1)
    q = first(idx)[0, -1].log_softmax(-1)
    expected = gradient(0.5 * (p.exp() * (p - q.detach())).sum(), model).double()
    found = [gradient(step_loss(policy, model, step)[0].loss, model) for step in range(50)]
    mean, error = projections(found, expected)
    assert error < 0.1
    assert mean == pytest.approx(1, abs=4 * error)


# A step by hand


def by_hand(policy: Policy, model: Network) -> list[dict[str, Any]]:
    """Of each answer at hand its text, and of its tokens what the policy computes of them, in float64."""
    assert policy.drawn is not None
    gpt, found, asked = language_model(model.double()), [], policy.drawn.rollouts
    assert policy.reference.frozen is not None
    first = policy.reference.frozen.double()
    for row, reply in enumerate(asked.replies):
        begin = int(asked.counted[row].nonzero()[0])
        idx = asked.idx[row, : begin + len(reply.ids)][None]
        places = slice(begin, begin + len(reply.ids))
        with torch.no_grad():
            p = (gpt(idx)[0, places] / policy.task.temperature).log_softmax(-1)
            q = (first(idx)[0, places] / policy.task.temperature).log_softmax(-1)
            values = model(idx)[0, places] if isinstance(model, HeadedGPT) else torch.zeros(len(reply.ids))
        said = torch.tensor(reply.ids)[:, None]
        found.append(
            {
                "text": CHAT.tokenizer.decode(reply.ids[: len(reply.ids) - reply.ended]),
                "logprobs": p.gather(1, said)[:, 0].tolist(),
                "reference": q.gather(1, said)[:, 0].tolist(),
                "kl": (p.exp() * (p - q)).sum(-1).tolist(),
                "entropy": (-p.exp() * p).sum(-1).tolist(),
                "values": values.tolist(),
                "count": len(reply.ids),
            }
        )
    model.float()
    first.float()
    return found


def estimate(kind: str, log_ratio: float, exact: float) -> float:
    k3 = math.exp(-log_ratio) - 1 + log_ratio
    return {"exact": exact, "k1": log_ratio, "k2": log_ratio**2 / 2, "k3": k3, "k3_weighted": k3}[kind]


@pytest.mark.parametrize("kind", ["exact", "k1", "k2", "k3", "k3_weighted"])
def test_each_divergence_reaches_the_loss(kind: str) -> None:
    """Fault 13: beside the exact sum over the vocabulary, each estimate is itself."""
    first, model = tiny_gpt(), tiny_gpt(seed=1)
    policy = policy_of(grpo(group=2, kl=kind, kl_coef=0.3, temperature=0.7), first, 8)
    loss = step_loss(policy, model)[0]
    answers = by_hand(policy, model)
    tokens = sum(each["count"] for each in answers)
    terms = [
        estimate(kind, p - q, kl)
        for each in answers
        for p, q, kl in zip(each["logprobs"], each["reference"], each["kl"], strict=True)
    ]
    kl, count = loss.figures["kl"]
    assert float(kl / count) == pytest.approx(sum(terms) / tokens, rel=1e-5)
    without = policy_of(grpo(group=2, temperature=0.7), first, 8)
    assert (loss.loss - step_loss(without, model)[0].loss).item() == pytest.approx(0.3 * sum(terms) / tokens, rel=1e-4)
    assert "kl" not in step_loss(without, model)[0].figures


@pytest.mark.parametrize("baseline", ["mean", "mean_std", "leave_one_out"])
@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_baseline_and_normalisation_are_what_they_say(baseline: str, normalise: str) -> None:
    """Fault 15: each is a switch; fault 10: an answer without an end counts with all its tokens."""
    model = tiny_gpt(seed=1)
    policy = policy_of(grpo(group=4, baseline=baseline, normalise=normalise), tiny_gpt(), 8)
    policy.chat = SimpleNamespace(ends=range(0, CHAT.tokenizer.vocab_size, 5))  # type: ignore[assignment]
    found = step_loss(policy, model)[0]
    of_loss = gradient(found.loss, model)
    answers = by_hand(policy, model)
    assert policy.drawn is not None
    assert {reply.ended for reply in policy.drawn.rollouts.replies} == {True, False}
    rewards = torch.tensor(rewards_of([each["text"] for each in answers]), dtype=torch.float64).view(2, 4)
    advantages = rewards - rewards.mean(1, keepdim=True)
    if baseline == "mean_std":
        advantages = advantages / (rewards.std(1, keepdim=True) + 1e-4)
    if baseline == "leave_one_out":
        advantages = advantages * 4 / 3
    tokens = [each["count"] for each in answers]
    shares = {
        "token": [1 / sum(tokens)] * 8,
        "sequence": [1 / (8 * count) for count in tokens],
        "constant": [1 / (8 * 6)] * 8,
    }[normalise]
    expected = -sum(
        float(a) * share * each["count"]
        for a, share, each in zip(advantages.flatten(), shares, answers, strict=True)  # the ratio is 1
    )
    assert found.loss.item() == pytest.approx(expected, abs=1e-6)
    logits = model(policy.drawn.rollouts.idx)
    rows = policy.drawn.rollouts
    logprobs = logits.log_softmax(-1).gather(-1, rows.targets.clamp(min=0)[..., None])[..., 0] * rows.counted
    weights = torch.tensor(shares) * advantages.flatten().float()
    by_formula = gradient(-(weights * logprobs.sum(-1)).sum(), model)
    torch.testing.assert_close(of_loss, by_formula, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_step_of_ppo_is_its_formulas(whiten: bool) -> None:
    first = tiny_gpt()
    torch.manual_seed(2)
    model = HeadedGPT(tiny_gpt(seed=1), HeadConfig("value"))
    with torch.no_grad():
        model.score.weight.mul_(20)
    task = ppo(kl_reward=0.3, kl_coef=0.2, gamma=0.9, lam=0.8, value_coef=0.7, whiten=whiten, temperature=0.7)
    policy = policy_of(task, first, 4)
    policy.chat = SimpleNamespace(ends=range(0, CHAT.tokenizer.vocab_size, 5))  # type: ignore[assignment]
    found = step_loss(policy, model)[0]
    answers = by_hand(policy, model)
    assert len({each["count"] for each in answers}) > 1
    advantages, squares, kl = [], [], []
    for each in answers:
        rewards = [-0.3 * (p - q) for p, q in zip(each["logprobs"], each["reference"], strict=True)]
        rewards[-1] += rewards_of([each["text"]])[0]
        after, value_after = 0.0, 0.0
        backwards = []
        for reward, value in zip(reversed(rewards), reversed(each["values"]), strict=True):
            after = reward + 0.9 * value_after - value + 0.9 * 0.8 * after
            value_after = value
            backwards.append(after)
        advantages += backwards[::-1]
        squares += [a**2 / 2 for a in backwards]  # the return is the value and the advantage
        kl += each["kl"]
    a = torch.tensor(advantages, dtype=torch.float64)
    if whiten:
        a = (a - a.mean()) / a.std(correction=0)
    of_policy = -a.mean() + 0.2 * sum(kl) / len(kl)
    assert found.loss.item() == pytest.approx(float(of_policy + 0.7 * sum(squares) / len(kl)), abs=1e-5)
    figures = {name: float(total / count) for name, (total, count) in found.figures.items()}
    assert figures["kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-5)
    assert figures["kl_of_answer"] == pytest.approx(sum(kl) / 4, abs=1e-4)
    assert figures["value_loss"] == pytest.approx(sum(squares) / len(kl), abs=1e-5)
    assert figures["sampler_gap"] < 1e-5
    entropies = [value for each in answers for value in each["entropy"]]
    assert figures["entropy"] == pytest.approx(sum(entropies) / len(kl), abs=1e-4)
    assert figures["stop_rate"] == sum(r.ended for r in policy.drawn.rollouts.replies) / 4  # type: ignore[union-attr]


# Steps


def moved(model: Network) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


@pytest.mark.parametrize("task", [grpo(group=2, updates=3, clip=0.2), ppo(updates=3)])
def test_the_steps_on_one_set_of_answers_begin_with_a_ratio_of_exactly_1(task: PolicyConfig) -> None:
    """Fault 14: what the answers are compared to has no gradient, and is from before the first of these steps."""
    gpt = tiny_gpt(seed=1)
    model: Network = HeadedGPT(gpt, HeadConfig("value")) if task.name == "ppo" else gpt
    policy = policy_of(task, tiny_gpt(), 8)
    first = step_loss(policy, model, 0, micro_batches=2)
    assert policy.drawn is not None
    drawn = policy.drawn
    assert drawn.old is not None
    kept = [each for each in drawn[:-1] if isinstance(each, Tensor)] + [drawn.rollouts.logprobs]
    assert not any(each.requires_grad for each in kept)
    assert all(float(each.figures["abs_log_ratio"][0]) == 0 for each in first)
    assert all(float(each.figures["ratio"][0]) == float(each.figures["ratio"][1]) for each in first)
    for step in (1, 2):
        moved(model)
        later = step_loss(policy, model, step, micro_batches=2)
        assert policy.drawn is drawn
        assert all(float(each.figures["abs_log_ratio"][0]) > 0 for each in later)
        assert "sampler_gap" not in later[0].figures  # the policy has moved since
    anew = step_loss(policy, model, 3, micro_batches=2)
    assert policy.drawn is not drawn
    assert float(anew[0].figures["abs_log_ratio"][0]) == 0


@pytest.mark.parametrize("task", [grpo(group=4, kl_coef=0.1), ppo(group=4, kl_coef=0.1, normalise="sequence")])
def test_micro_batches_add_up_to_the_step(task: PolicyConfig) -> None:
    """Faults 9 and 10: the denominators are the step's, however it is divided, even within a group."""
    gpt = tiny_gpt(seed=1)
    model: Network = HeadedGPT(gpt, HeadConfig("value")) if task.name == "ppo" else gpt
    losses, gradients = [], []
    for count in (1, 2, 8):
        policy = policy_of(task, tiny_gpt(), 8)
        policy.chat = SimpleNamespace(ends=range(0, CHAT.tokenizer.vocab_size, 5))  # type: ignore[assignment]
        parts = step_loss(policy, model, 0, count)
        whole = torch.stack([each.loss for each in parts]).mean()
        losses.append(whole.item())
        gradients.append(gradient(whole, model))
        weights = [float(each.weight) for each in parts]
        logged = sum(w * float(each.mean) for w, each in zip(weights, parts, strict=True)) / sum(weights)
        rest = [float(each.figures["value_loss"][0]) for each in parts if "value_loss" in each.figures]
        tokens = sum(float(each.figures["entropy"][1]) for each in parts)
        assert logged + 0.1 * sum(rest) / tokens == pytest.approx(whole.item(), abs=1e-5)
    assert losses[1:] == pytest.approx(losses[:1] * 2, abs=1e-5)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-4)


def test_a_constant_reward_has_exactly_no_gradient() -> None:
    """Fault 11."""
    model = tiny_gpt(seed=1)
    for baseline in ("mean", "mean_std", "leave_one_out"):
        policy = policy_of(grpo(group=4, baseline=baseline), tiny_gpt(), 8, rule=lambda answers: [0.1] * len(answers))
        loss = step_loss(policy, model)[0].loss
        assert loss.item() == 0
        assert gradient(loss, model).count_nonzero() == 0


def test_a_controls_rewards_are_the_same_ones_in_another_order() -> None:
    model, found = tiny_gpt(seed=1), []
    for shuffle in (False, True):
        policy = policy_of(grpo(group=8, normalise="constant"), tiny_gpt(), 8)
        policy.shuffle = shuffle
        reward = step_loss(policy, model)[0].figures["reward"]
        assert policy.drawn is not None
        found.append((float(reward[0]), policy.drawn.advantages))
    assert found[0][0] == found[1][0]  # what is logged is what the answers earned
    torch.testing.assert_close(found[0][1].sort().values, found[1][1].sort().values)
    assert not torch.equal(found[0][1], found[1][1])


def test_a_bad_steps_answers_are_kept_to_be_looked_at() -> None:
    model = tiny_gpt(seed=1)
    policy = policy_of(grpo(group=2), tiny_gpt(), 8)
    step_loss(policy, model)
    drawn = policy.drawn
    trainer: Any = SimpleNamespace(
        accumulate_grad_batches=4, world_size=2, lightning_module=SimpleNamespace(bad_step=torch.tensor(0))
    )
    policy.loss(model, PromptBatch(1, 0, (0,), slice(0, 2), 0), trainer)
    assert policy.drawn is drawn
    with torch.no_grad():
        model.wte.weight[0] = math.nan
    for rows in (slice(0, 2), slice(4, 6)):  # of another process, too: it looks at its own
        assert policy.diagnosed(model, PromptBatch(1, 0, (0,), rows, 0), trainer).isnan()
