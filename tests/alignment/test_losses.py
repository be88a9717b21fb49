"""Losses are the formulas, written out in fp64; micro-batches add up; what does not count has no part in anything."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.alignment.logprobs import exact_kl, sequence_sums, token_logprobs
from gptlab.alignment.losses import (
    DPO_VARIANTS,
    NORMALISATIONS,
    RATIOS,
    Loss,
    dpo_loss,
    policy_loss,
    reward_loss,
    value_loss,
)
from gptlab.models import GPT, GPTConfig
from gptlab.system.errors import UserError

P, B, T, LENGTH = 8, 8, 6, 11


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def means(loss: Loss) -> dict[str, float]:
    return {name: (total / weight).item() for name, (total, weight) in loss.figures.items()}


def softplus(x: float) -> float:
    """log(1 + e^x), so that -log sigmoid(x) is softplus(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def added(losses: list[Loss]) -> Loss:
    whole = losses[0]
    for loss in losses[1:]:
        whole = whole + loss
    return whole


# Pairs


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    return -20 * torch.rand(P, 2), -20 * torch.rand(P, 2), torch.randint(1, 9, (P, 2))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("variant", DPO_VARIANTS)
def test_dpo_is_its_formula(variant: str, beta: float, label_smoothing: float) -> None:
    """Fault 18: with the mean over tokens in place of the sum, it is another loss, and has another name."""
    policy, reference, lengths = pairs()
    policy.requires_grad_()
    reference.requires_grad_()
    options: dict[str, Any] = {"beta": beta, "variant": variant, "label_smoothing": label_smoothing}
    loss = dpo_loss(policy, reference, lengths, **options)
    expected, slopes, rewards = 0.0, torch.zeros(P, 2, dtype=torch.float64), []
    for i in range(P):
        n = (1, 1) if variant == "sigmoid" else lengths[i].tolist()
        chosen, rejected = ((policy[i, j].item() - reference[i, j].item()) / n[j] for j in (0, 1))
        d = chosen - rejected
        if variant == "ipo":
            up, down = (d - 1 / (2 * beta)) ** 2, (-d - 1 / (2 * beta)) ** 2
            slope = (1 - label_smoothing) * 2 * (d - 1 / (2 * beta)) + label_smoothing * 2 * (d + 1 / (2 * beta))
        else:
            up, down = softplus(-beta * d), softplus(beta * d)
            sigmoid = 1 / (1 + math.exp(-beta * d))
            slope = -(1 - label_smoothing) * beta * (1 - sigmoid) + label_smoothing * beta * sigmoid
        expected += (1 - label_smoothing) * up + label_smoothing * down
        slopes[i, 0], slopes[i, 1] = slope / n[0], -slope / n[1]
        rewards.append((beta * chosen, beta * rejected))
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.weight.item() == P
    loss.total.backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad.double(), slopes, atol=1e-6, rtol=1e-5)
    assert reference.grad is None
    assert means(loss) == pytest.approx(
        {
            "chosen_logprob": policy[:, 0].mean().item(),
            "rejected_logprob": policy[:, 1].mean().item(),
            "chosen_reward": sum(a for a, _ in rewards) / P,
            "rejected_reward": sum(b for _, b in rewards) / P,
            "margin": sum(a - b for a, b in rewards) / P,
            "accuracy": sum(a > b for a, b in rewards) / P,
        },
        rel=1e-5,
    )


def test_a_falling_probability_of_the_chosen_answer_is_seen_beside_a_growing_margin() -> None:
    """Fault 17: the margin alone does not tell."""
    reference, lengths = torch.tensor([[-10.0, -10.0]]), torch.ones(1, 2)
    later = dpo_loss(torch.tensor([[-14.0, -30.0]]), reference, lengths, beta=0.1)
    found = means(later)
    assert (found["margin"], found["accuracy"]) == (pytest.approx(1.6), 1)
    assert (found["chosen_logprob"], found["rejected_logprob"]) == (-14, -30)
    assert found["chosen_reward"] == pytest.approx(-0.4)


@pytest.mark.parametrize("centring", [0.0, 0.1])
@pytest.mark.parametrize("with_margins", [False, True])
def test_the_reward_loss_is_its_formula(with_margins: bool, centring: float) -> None:
    rewards, margins = torch.randn(P, 2).requires_grad_(), torch.rand(P) if with_margins else None
    loss = reward_loss(rewards, margins, centring)
    expected, slopes, correct = 0.0, torch.zeros(P, 2, dtype=torch.float64), 0
    for i, (chosen, rejected) in enumerate(rewards.tolist()):
        d = chosen - rejected - (margins[i].item() if margins is not None else 0)
        expected += softplus(-d) + centring * (chosen + rejected) ** 2
        slope, pull = -1 / (1 + math.exp(d)), 2 * centring * (chosen + rejected)
        slopes[i, 0], slopes[i, 1] = slope + pull, -slope + pull
        correct += chosen > rejected
    assert loss.mean.item() == pytest.approx(expected / P, rel=1e-5)
    loss.total.backward()
    assert rewards.grad is not None
    torch.testing.assert_close(rewards.grad.double(), slopes, atol=1e-6, rtol=1e-5)
    found = means(loss)
    assert found["accuracy"] == correct / P
    assert found["margin"] == pytest.approx(found["chosen_reward"] - found["rejected_reward"], abs=1e-6)


def test_a_pair_that_is_undecided_is_half_right() -> None:
    assert means(reward_loss(torch.tensor([[1.0, 1.0], [2.0, 1.0]])))["accuracy"] == 0.75


# Step 0


def test_at_step_0_the_log_ratio_is_exactly_0_and_dropout_would_be_seen() -> None:
    """Fault 16: with dropout in the policy's, or the reference's, log-probabilities, they differ before any step."""
    model = GPT(GPTConfig(vocab_size=11, block_size=T, n_layer=2, n_head=2, n_embd=8, dropout=0.3))
    idx, targets, counted = torch.randint(11, (4, T)), torch.randint(11, (4, T)), torch.ones(4, T, dtype=torch.bool)
    with torch.no_grad():
        reference = model.eval()(idx)
    old = token_logprobs(reference, targets)

    def figures(noise: Tensor | None) -> tuple[dict[str, float], float]:
        logits = model(idx, noise=noise)
        now = token_logprobs(logits, targets)
        kl = exact_kl(logits, reference, counted)
        two = policy_loss(now, old, torch.ones(4), counted, kl=kl, kl_coef=0.1)
        sums = [sequence_sums(each, counted).view(2, 2) for each in (now, old)]
        dpo = dpo_loss(*sums, torch.full((2, 2), T), beta=0.1)
        return means(two) | means(dpo), dpo.mean.item()

    exact, loss = figures(None)
    assert [exact[name] for name in ("abs_log_ratio", "kl", "clipped", "margin")] == [0, 0, 0, 0]
    assert (exact["ratio"], exact["accuracy"]) == (1, 0.5)
    assert loss == pytest.approx(math.log(2))
    model.train()
    faulty, _ = figures(torch.arange(4, dtype=torch.int32))
    assert all(faulty[name] != 0 for name in ("abs_log_ratio", "kl", "margin"))


# Rewards


def rollouts() -> dict[str, Tensor]:
    """Answers of several lengths after prompts of several lengths, one of which does not count at all."""
    counted = torch.zeros(B, T, dtype=torch.bool)
    for row, (first, last) in enumerate([(0, 6), (1, 4), (2, 3), (3, 6), (0, 0), (0, 1), (1, 6), (2, 5)]):
        counted[row, first:last] = True
    logprobs = -3 * torch.rand(B, T)
    return {
        "logprobs": logprobs.masked_fill(~counted, 0),
        "old_logprobs": (logprobs + 0.4 * torch.randn(B, T)).masked_fill(~counted, 0),
        "advantages": torch.randn(B),
        "counted": counted,
        "kl": torch.rand(B, T).masked_fill(~counted, 0),
    }


def written_out(r: dict[str, Tensor], ratio: str, normalise: str, clip: tuple[float, float] | None) -> float:
    """The policy loss in Python's fp64."""
    per_token: list[list[float]] = []
    for b in range(B):
        places = [t for t in range(T) if r["counted"][b, t]]
        logs = [r["logprobs"][b, t].item() - r["old_logprobs"][b, t].item() for t in places]
        if ratio == "sequence" and logs:
            logs = [sum(logs) / len(logs)] * len(logs)
        a, losses = r["advantages"][b].item(), []
        for t, log in zip(places, logs, strict=True):
            x = math.exp(log)
            gain = x * a if clip is None else min(x * a, min(max(x, 1 - clip[0]), 1 + clip[1]) * a)
            losses.append(-gain + 0.3 * r["kl"][b, t].item())
        if losses:
            per_token.append(losses)
    tokens = [x for row in per_token for x in row]
    if normalise == "token":
        return sum(tokens) / len(tokens)
    if normalise == "sequence":
        return sum(sum(row) / len(row) for row in per_token) / len(per_token)
    return sum(tokens) / (LENGTH * len(per_token))


@pytest.mark.parametrize("clip", [None, (0.2, 0.2), (0.2, 0.28)])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_policy_loss_is_its_formula(ratio: str, normalise: str, clip: tuple[float, float] | None) -> None:
    r = rollouts()
    low, high = clip or (None, None)
    options: dict[str, Any] = {"ratio": ratio, "normalise": normalise, "length": LENGTH, "clip": low}
    loss = policy_loss(**r, clip_high=high if high != low else None, kl_coef=0.3, **options)
    assert loss.mean.item() == pytest.approx(written_out(r, ratio, normalise, clip), rel=1e-5)


def test_without_old_log_probabilities_the_gradient_is_the_policy_gradient() -> None:
    r = rollouts()
    logprobs = r["logprobs"].requires_grad_()
    loss = policy_loss(logprobs, None, r["advantages"], r["counted"])
    loss.total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, -r["advantages"][:, None] * r["counted"])
    assert means(loss) == {"ratio": 1, "abs_log_ratio": 0, "clipped": 0}


def test_clipping_takes_the_gradient_only_where_a_ratio_has_gone_far_the_right_way() -> None:
    ratios, advantages = [0.5, 0.5, 1.0, 1.0, 1.5, 1.5], [1.0, -1.0] * 3
    logprobs = torch.tensor([ratios]).log().requires_grad_()
    counted = torch.ones(1, 6, dtype=torch.bool)
    loss = policy_loss(logprobs, torch.zeros(1, 6), torch.tensor([advantages]), counted, clip=0.2)
    loss.total.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.5, 0.0, -1.0, 1.0, 0.0, 1.5]]))
    assert means(loss)["clipped"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_value_loss_is_its_formula(clip: float | None) -> None:
    counted = rollouts()["counted"]
    values, old, returns = torch.randn(B, T).requires_grad_(), torch.randn(B, T), torch.randn(B, T)
    loss = value_loss(values, old, returns, counted, clip=clip)
    expected, slopes, clipped = 0.0, torch.zeros(B, T), 0
    for b, t in counted.nonzero().tolist():
        v, o, target = values[b, t].item(), old[b, t].item(), returns[b, t].item()
        held = o + min(max(v - o, -clip), clip) if clip else v
        expected += max((v - target) ** 2, (held - target) ** 2) / 2
        if (held - target) ** 2 > (v - target) ** 2:
            clipped += 1
        else:
            slopes[b, t] = v - target
    assert loss.mean.item() == pytest.approx(expected / int(counted.sum()), rel=1e-5)
    loss.total.backward()
    torch.testing.assert_close(values.grad, slopes)
    assert means(loss)["clipped"] == pytest.approx(clipped / int(counted.sum()))
    assert bool(clipped) == bool(clip)


def test_a_value_that_has_not_moved_far_is_not_clipped_whatever_its_rounding() -> None:
    old, values = 0.1 * torch.rand(1, 1000), 0.001 * torch.randn(1, 1000)  # old + (values - old) is not values
    loss = value_loss(values, old, torch.randn(1, 1000), torch.ones(1, 1000, dtype=torch.bool), clip=0.2)
    assert means(loss)["clipped"] == 0


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("kind", ["dpo", "reward", "value", *NORMALISATIONS])
def test_micro_batches_add_up_to_the_step(kind: str, size: int) -> None:
    """Fault 9: the mean of the micro-batches' means is another loss where their tokens differ in number."""
    r = rollouts()
    policy, reference, lengths = pairs()
    values = torch.randn(3, B, T)

    def loss(rows: slice) -> Loss:
        if kind == "dpo":
            return dpo_loss(policy[rows], reference[rows], lengths[rows], beta=0.1)
        if kind == "reward":
            return reward_loss(policy[rows], centring=0.1)
        if kind == "value":
            old, now, returns = values[:, rows]
            return value_loss(now, old, returns, r["counted"][rows])
        return policy_loss(**{k: v[rows] for k, v in r.items()}, kl_coef=0.3, normalise=kind, length=LENGTH)

    whole = loss(slice(0, 8))
    parts = [loss(slice(i, i + size)) for i in range(0, 8, size)]
    sum_of_parts = added(parts)
    assert sum_of_parts.mean.item() == pytest.approx(whole.mean.item(), rel=1e-6)
    assert means(sum_of_parts) == pytest.approx(means(whole), rel=1e-5, abs=1e-6)
    if size == 1 and kind in ("token", "value"):  # where the fault would show
        assert sum(part.mean.item() for part in parts) / len(parts) != pytest.approx(whole.mean.item(), rel=1e-2)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_an_answer_that_does_not_count_is_in_no_denominator_and_spoils_nothing(ratio: str, normalise: str) -> None:
    """Fault 10: answers that were cut short or are not finite, masked but still counted."""
    r = rollouts()
    options: dict[str, Any] = {"ratio": ratio, "normalise": normalise, "length": LENGTH, "kl_coef": 0.3}
    kept = [row for row in range(B) if row != 4]  # of which nothing counts
    without = policy_loss(**{k: v[kept] for k, v in r.items()}, **options)
    assert r["counted"][4].sum() == 0
    for name in ("advantages", "old_logprobs", "kl"):
        r[name][4] = float("nan")
    r["logprobs"][4] = float("-inf")
    r["logprobs"].requires_grad_()
    loss = policy_loss(**r, **options)
    assert loss.mean.item() == pytest.approx(without.mean.item(), rel=1e-6)
    assert loss.weight == without.weight
    assert means(loss) == pytest.approx(means(without), rel=1e-6)
    loss.total.backward()
    assert r["logprobs"].grad is not None
    assert r["logprobs"].grad.isfinite().all()
    values = torch.randn(B, T).requires_grad_()
    nothing = torch.full((B, T), float("nan")).where(~r["counted"], 1.0)
    value_loss(values, nothing, nothing, r["counted"]).total.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_step_in_which_nothing_counts_has_loss_0_and_no_gradient(normalise: str) -> None:
    logprobs = torch.zeros(B, T, requires_grad=True)
    nothing = torch.zeros(B, T, dtype=torch.bool)
    loss = policy_loss(logprobs, None, torch.ones(B), nothing, normalise=normalise, length=LENGTH)
    assert (loss.mean.item(), loss.weight.item()) == (0, 0)
    loss.mean.backward()
    assert logprobs.grad is not None
    assert not logprobs.grad.any()


def test_a_long_wrong_answer_costs_as_much_a_token_as_a_short_one_except_by_sequence() -> None:
    """Fault 15: dividing by the length favours long wrong answers."""
    counted = torch.zeros(2, 6, dtype=torch.bool)
    counted[0, :1] = counted[1, :] = True

    def push(normalise: str) -> float:
        logprobs = torch.zeros(2, 6, requires_grad=True)
        policy_loss(logprobs, None, -torch.ones(2), counted, normalise=normalise, length=6).mean.backward()
        assert logprobs.grad is not None
        return (logprobs.grad[1, 0] / logprobs.grad[0, 0]).item()

    assert [push(normalise) for normalise in ("token", "sequence", "constant")] == pytest.approx([1, 1 / 6, 1])


PAIR, ROW = (torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2)), torch.zeros(1, 1)
ROLLOUT = (ROW, None, torch.zeros(1), ROW == 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo_loss(*PAIR, beta=0.1, variant="sigmoid_nrm"), "variant=sigmoid_nrm: .* did you mean sigmoid_norm"),
        (lambda: dpo_loss(*PAIR, beta=0.0), r"beta=0.0: must be above 0, e.g. 0.1"),
        (lambda: dpo_loss(*PAIR, beta=0.1, label_smoothing=0.5), "label_smoothing=0.5: must be at least 0 and below"),
        (lambda: reward_loss(PAIR[0], centring=-1.0), "centring=-1.0: must be at least 0"),
        (lambda: policy_loss(*ROLLOUT, clip=0.0), "clip=0.0: must be above 0, e.g. 0.2, or null"),
        (lambda: policy_loss(*ROLLOUT, clip_high=-1.0), "clip_high=-1.0: must be above 0"),
        (lambda: policy_loss(*ROLLOUT, clip=None, clip_high=0.3), "clip_high=0.3: has no effect with clip=null"),
        (lambda: policy_loss(*ROLLOUT, ratio="word"), "ratio=word: there is no such choice"),
        (lambda: policy_loss(*ROLLOUT, normalise="tokens"), "normalise=tokens: .* did you mean token"),
        (lambda: policy_loss(*ROLLOUT, normalise="constant"), "length=None: normalise=constant needs the most tokens"),
        (lambda: policy_loss(*ROLLOUT, kl_coef=0.1), "kl_coef=0.1: there is no reference"),
        (lambda: value_loss(ROW, ROW, ROW, ROW == 0, clip=-0.1), "clip=-0.1: must be above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
