"""Advantages are their formulas, in fp64 loops; equal rewards teach nothing, exactly."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlab.alignment.advantages import BASELINES, gae, group_advantages, token_rewards
from gptlab.system.errors import UserError

P, G, B, T = 5, 4, 4, 9


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


def of_one_group(rewards: list[float], baseline: str) -> list[float]:
    mean, n = statistics.fmean(rewards), len(rewards)
    if baseline == "mean":
        return [r - mean for r in rewards]
    if baseline == "mean_std":
        return [(r - mean) / (statistics.stdev(rewards) + 1e-4) for r in rewards]
    return [r - (sum(rewards) - r) / (n - 1) for r in rewards]


@pytest.mark.parametrize("around", [0, 10_000])  # where fp32 would round the mean
@pytest.mark.parametrize("baseline", BASELINES)
def test_group_advantages_are_their_formulas(baseline: str, around: float) -> None:
    rewards = around + torch.randn(P, G)
    expected = [of_one_group(group, baseline) for group in rewards.tolist()]
    torch.testing.assert_close(group_advantages(rewards, baseline), torch.tensor(expected), atol=1e-6, rtol=1e-6)
    assert group_advantages(rewards, baseline).dtype == rewards.dtype


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, -1e6, 1e-30])
@pytest.mark.parametrize("group", [2, 3, 7, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("baseline", BASELINES)
def test_equal_rewards_have_exactly_no_advantage(baseline: str, dtype: torch.dtype, group: int, value: float) -> None:
    """Fault 11: a group's mean is rounded, and what is left over, divided by its deviation, would be learnt from."""
    assert group_advantages(torch.full((P, group), value, dtype=dtype), baseline).count_nonzero() == 0


@pytest.mark.parametrize("baseline", BASELINES)
def test_advantages_stay_of_the_size_of_the_rewards(baseline: str) -> None:
    """Fault 11: leave-one-out divided by the deviation of the others, which is 0 here, was 1e6."""
    assert group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), baseline).abs().max() <= 1.5


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("shape", [(3, 1), (3,)])
def test_a_group_of_one_is_refused(shape: tuple[int, ...], baseline: str) -> None:
    """Fault 11: its standard deviation is nan."""
    with pytest.raises(UserError, match=r"1 answer for each prompt: .* sample at least 2"):
        group_advantages(torch.zeros(shape), baseline)


def test_a_baseline_of_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="baseline=std: there is no such choice; "):
        group_advantages(torch.zeros(2, 2), "std")


@pytest.mark.parametrize("baseline", BASELINES)
def test_an_answer_that_does_not_count_is_in_no_group(baseline: str) -> None:
    """Fault 10: a masked answer moved the mean of the others."""
    rewards, counted = torch.randn(P, G), torch.ones(P, G, dtype=torch.bool)
    counted[0, 1] = counted[1, 0] = counted[1, 3] = False
    counted[2, 1:] = False  # one is left, with nothing to compare it to
    counted[3] = False
    rewards[~counted] = float("nan")
    found = group_advantages(rewards, baseline, counted)
    for p in range(P):
        kept = rewards[p][counted[p]].tolist()
        expected = of_one_group(kept, baseline) if len(kept) > 1 else [0.0] * len(kept)
        assert found[p][counted[p]].tolist() == pytest.approx(expected, abs=1e-6)
    assert not found[~counted].any()


def masked() -> Tensor:
    """Answers after prompts; one in two parts, one without a token, one that fills its row."""
    counted = torch.zeros(B, T, dtype=torch.bool)
    counted[0, 2:7] = counted[1, 1:3] = counted[1, 5:8] = counted[3] = True
    return counted


def test_a_token_is_rewarded_for_staying_near_and_the_last_one_for_the_answer() -> None:
    counted, kl, scores = masked(), torch.randn(B, T), torch.tensor([1.0, 2.0, float("nan"), 4.0])
    kl[2] = float("nan")  # an answer that does not count
    found = token_rewards(scores, kl, counted, 0.1)
    for b in range(B):
        places = [t for t in range(T) if counted[b, t]]
        for t in range(T):
            expected = -0.1 * kl[b, t].item() + (scores[b].item() if t == places[-1] else 0) if t in places else 0
            assert found[b, t].item() == pytest.approx(expected, abs=1e-6)


def by_definition(rewards: Tensor, values: Tensor, counted: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """A_t is the sum over k of (gamma lam)^k d_t+k, in which t + k counts only the answer's own tokens."""
    advantages, returns = torch.zeros(B, T, dtype=torch.float64), torch.zeros(B, T, dtype=torch.float64)
    for b in range(B):
        places = [t for t in range(T) if counted[b, t]]
        v = [values[b, t].item() for t in places] + [0.0]
        deltas = [rewards[b, t].item() + gamma * v[i + 1] - v[i] for i, t in enumerate(places)]
        for i, t in enumerate(places):
            advantages[b, t] = sum((gamma * lam) ** k * d for k, d in enumerate(deltas[i:]))
            returns[b, t] = advantages[b, t] + v[i]
    return advantages, returns


@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_its_definition_over_the_answers_own_tokens(gamma: float, lam: float) -> None:
    counted, rewards, values = masked(), torch.randn(B, T), torch.randn(B, T)
    rewards[~counted] = values[~counted] = float("nan")  # of prompts and padding: never looked at
    found = gae(rewards, values, counted, gamma=gamma, lam=lam)
    for ours, expected in zip(found, by_definition(rewards, values, counted, gamma, lam), strict=True):
        torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)


def test_with_the_rewards_alone_the_return_is_what_is_still_to_come() -> None:
    counted, rewards = masked(), torch.randn(B, T)
    _, returns = gae(rewards, torch.randn(B, T), counted, gamma=1.0, lam=1.0)
    kept = rewards.masked_fill(~counted, 0)
    to_come = kept.flip(-1).cumsum(-1).flip(-1).masked_fill(~counted, 0)
    torch.testing.assert_close(returns, to_come, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"gamma": 1.5}, {"lam": -0.1}, {"lam": float("nan")}])
def test_gae_refuses_what_is_out_of_range(options: dict[str, Any]) -> None:
    ((key, value),) = options.items()
    with pytest.raises(UserError, match=f"{key}={value}: must be from 0 to 1"):
        gae(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), **options)
