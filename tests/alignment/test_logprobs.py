"""Log-probabilities are the sampler's own, in fp32; each estimate of KL has the gradient that its table says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gptlab.alignment.logprobs import (
    KL_ESTIMATORS,
    entropy,
    exact_kl,
    kl_estimate,
    log_probabilities,
    sequence_means,
    sequence_sums,
    token_logprobs,
)
from gptlab.data.batches import IGNORED
from gptlab.generation.sampling import Sampling
from gptlab.system.errors import UserError

B, T, V = 3, 5, 7


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(7)


@pytest.fixture
def targets() -> Tensor:
    targets = torch.randint(V, (B, T))
    targets[0, :2] = targets[1, 3:] = IGNORED
    return targets


def logits(*shape: int) -> Tensor:
    return 3 * torch.randn(*(shape or (B, T, V)))


def test_log_probabilities_of_targets_are_those_of_a_loop_in_fp64(targets: Tensor) -> None:
    x = logits()
    found = token_logprobs(x, targets)
    for b in range(B):
        for t in range(T):
            row, target = x[b, t].double(), targets[b, t]
            expected = 0.0 if target == IGNORED else (row[target] - row.exp().sum().log()).item()
            assert found[b, t].item() == pytest.approx(expected, abs=2e-6)
    counted = targets != IGNORED
    sums = [sum(found[b, t].item() for t in range(T) if counted[b, t]) for b in range(B)]
    assert sequence_sums(found, counted).tolist() == pytest.approx(sums)
    means = [total / int(row.sum()) for total, row in zip(sums, counted, strict=True)]
    assert sequence_means(found, counted).tolist() == pytest.approx(means)
    assert sequence_means(found, torch.zeros_like(counted)).tolist() == [0.0] * B


def test_bf16_logits_become_fp32_before_anything_is_computed(targets: Tensor) -> None:
    x = logits().bfloat16()
    assert torch.equal(token_logprobs(x, targets, 0.7), token_logprobs(x.float(), targets, 0.7))
    assert token_logprobs(x, targets).dtype == log_probabilities(x).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 2.0])
def test_they_are_those_that_the_sampler_draws_from(targets: Tensor, temperature: float) -> None:
    """Fault 12: at temperature 1, those of a sample drawn at 0.8 are another policy's."""
    x = logits()
    probabilities = Sampling(temperature=temperature).probabilities(x.flatten(0, 1))
    drawn_from = torch.from_numpy(probabilities).view(B, T, V).log()
    torch.testing.assert_close(log_probabilities(x, temperature).double(), drawn_from, atol=5e-6, rtol=1e-6)
    counted = targets != IGNORED
    expected = drawn_from.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(~counted, 0)
    torch.testing.assert_close(token_logprobs(x, targets, temperature).double(), expected, atol=5e-6, rtol=1e-6)
    nats = -(drawn_from.exp() * drawn_from).sum(-1).masked_fill(~counted, 0)
    torch.testing.assert_close(entropy(x, counted, temperature).double(), nats, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("call", [log_probabilities, lambda x, t: token_logprobs(x, x[..., 0].long(), t)])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_no_distribution_is_refused(call: object, temperature: float) -> None:
    with pytest.raises(UserError, match=f"temperature={temperature}: must be above 0"):
        call(logits(), temperature)  # type: ignore[operator]


def test_exact_kl_is_the_sum_over_the_vocabulary_and_has_its_gradient(targets: Tensor) -> None:
    x, reference, counted = logits().requires_grad_(), logits().requires_grad_(), targets != IGNORED
    kl = exact_kl(x, reference, counted, temperature=0.8)
    p, q = (each.detach().double() / 0.8 for each in (x, reference))
    p.requires_grad_()
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1) * counted
    torch.testing.assert_close(kl.double(), expected, atol=1e-5, rtol=1e-5)
    kl.sum().backward()
    expected.sum().backward()
    assert p.grad is not None
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), p.grad / 0.8, atol=1e-5, rtol=1e-5)
    assert reference.grad is None
    assert exact_kl(x, x, counted).count_nonzero() == 0


def test_a_token_that_the_filters_exclude_has_no_share_in_kl_and_entropy_and_spoils_no_gradient() -> None:
    x, reference = logits(1, 1, V), logits(1, 1, V)
    x[..., 2] = reference[..., 2] = float("-inf")
    x[..., 3] = float("-inf")
    x.requires_grad_()
    counted = torch.ones(1, 1, dtype=torch.bool)
    kept = [0, 1, 4, 5, 6]
    p = x.detach().double()[0, 0, kept].softmax(-1)
    q = reference.double()[0, 0].softmax(-1)[kept]
    kl, nats = exact_kl(x, reference, counted), entropy(x, counted)
    assert kl.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    assert nats.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    (kl + nats).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.count_nonzero() == len(kept)


def test_values_and_expected_gradients_of_the_estimators_are_those_of_their_table() -> None:
    """Fault 13: as a loss, k1 is only noise, and k3 has another divergence's gradient.

    Exact, as the expectation over all V tokens that could have been sampled.
    """
    x, reference = logits(V).double(), logits(V).double()
    p, q = x.softmax(-1), reference.softmax(-1)
    # The gradients of the two divergences with respect to the logits, written out.
    kl = (p * (p / q).log()).sum()
    gradients = {"k1": torch.zeros(V), "k2": p * ((p / q).log() - kl), "k3": p - q}
    gradients["k3_weighted"] = gradients["k2"]
    for kind in KL_ESTIMATORS:
        theta = x.clone().requires_grad_()
        log_p, log_q = theta.log_softmax(-1), reference.log_softmax(-1).requires_grad_()
        estimates = kl_estimate(log_p, log_q, kind)
        value = (p * estimates).sum()  # each token, as often as it is sampled
        value.backward()
        assert theta.grad is not None
        assert log_q.grad is None
        torch.testing.assert_close(theta.grad, gradients[kind].double(), atol=1e-12, rtol=1e-9)
        assert (value.item() == pytest.approx(kl.item(), rel=1e-9)) == (kind != "k2")
        assert (estimates >= 0).all().item() == (kind != "k1")
    # And the exact sum has the gradient of k2.
    theta = x.float().requires_grad_()
    exact_kl(theta[None, None], reference.float()[None, None], torch.ones(1, 1, dtype=torch.bool)).sum().backward()
    assert theta.grad is not None
    torch.testing.assert_close(theta.grad.double(), gradients["k2"], atol=1e-5, rtol=1e-5)


def test_weighted_it_has_value_and_gradient_of_kl_also_for_tokens_of_an_older_policy() -> None:
    x, old, reference = (logits(V).double().log_softmax(-1) for _ in range(3))
    x.requires_grad_()
    log_p = x.log_softmax(-1)
    value = (old.exp() * kl_estimate(log_p, reference, "k3_weighted", old)).sum()
    value.backward()
    p, q = x.detach().exp(), reference.exp()
    kl = (p * (p / q).log()).sum()
    assert value.item() == pytest.approx(kl.item(), rel=1e-9)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, p * ((p / q).log() - kl), atol=1e-12, rtol=1e-9)


def test_k1_in_the_reward_has_the_gradient_of_kl() -> None:
    x, reference = logits(V).double().requires_grad_(), logits(V).double()
    log_p = x.log_softmax(-1)
    rewards = -kl_estimate(log_p, reference.log_softmax(-1), "k1").detach()
    (-log_p.exp().detach() * rewards * log_p).sum().backward()  # the policy gradient, each token as often as sampled
    p, q = log_p.detach().exp(), reference.softmax(-1)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, p * ((p / q).log() - (p * (p / q).log()).sum()), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", KL_ESTIMATORS)
def test_an_estimate_is_exactly_0_where_both_agree(kind: str) -> None:
    logprobs = -torch.rand(B, T)
    assert kl_estimate(logprobs, logprobs, kind).count_nonzero() == 0


def test_an_estimate_of_another_name_is_refused() -> None:
    with pytest.raises(UserError, match="kl=k4: there is no such choice; there are k1, k2, k3, k3_weighted"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
