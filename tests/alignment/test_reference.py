"""The reference stays what the policy began as: apart from it, or within it with the adapters switched off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gptlab.alignment.reference import Reference
from gptlab.models.gpt import GPT
from gptlab.models.heads import HeadConfig, HeadedGPT
from gptlab.models.lora import LoRAConfig, add_adapters, train_new_rows
from tests.alignment.policies import IDS, tiny_gpt

IDX = torch.tensor([IDS[0]])


def moved(model: nn.Module) -> None:
    """Change all that is trained."""
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def logits_beside(reference: Reference, policy: GPT | HeadedGPT) -> Tensor:
    with reference.beside(policy) as model:
        assert not model.training
        found: Tensor = model(IDX)
    return found


def policies(kind: str) -> tuple[GPT | HeadedGPT, Reference]:
    """A policy in training mode, as a run makes it, and its reference."""
    model = tiny_gpt()
    if kind == "a copy":
        return model.train(), Reference(model)
    if kind == "a copy beside a value head":
        return HeadedGPT(model, HeadConfig("value")).train(), Reference(model)
    add_adapters(model, LoRAConfig(2, 8.0))
    if kind == "adapters and new tokens":
        train_new_rows(model, model.config.vocab_size - 5)
    return model.train(), Reference(None)


@pytest.mark.parametrize("kind", ["a copy", "a copy beside a value head", "adapters", "adapters and new tokens"])
def test_it_is_what_the_policy_began_as_however_that_moves(kind: str) -> None:
    """Fault 16: at step 0 the log-ratio is exactly 0; and later the reference is where it was."""
    first = tiny_gpt()(IDX)
    policy, reference = policies(kind)
    ours = policy.head(policy.features(IDX)) if isinstance(policy, HeadedGPT) else policy(IDX)
    assert torch.equal(ours, first)
    assert torch.equal(logits_beside(reference, policy), first)
    moved(policy)
    ours = policy.head(policy.features(IDX)) if isinstance(policy, HeadedGPT) else policy(IDX)
    assert not torch.allclose(ours, first, atol=0.1)
    assert torch.equal(logits_beside(reference, policy), first)
    assert policy.training
    assert all(module.training for module in policy.modules())


def test_a_copy_is_never_trained_and_follows_the_policys_type() -> None:
    policy = tiny_gpt().train()
    reference = Reference(policy)
    with reference.beside(policy) as model:
        assert model is not policy
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in policy.parameters())
    with reference.beside(policy.bfloat16()) as model:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert torch.equal(model(IDX), policy(IDX))


def test_the_policy_is_itself_again_after_an_error_too() -> None:
    policy, reference = policies("adapters")
    moved(policy)
    ours = policy(IDX)
    with pytest.raises(ZeroDivisionError), reference.beside(policy):
        raise ZeroDivisionError
    assert policy.training
    assert torch.equal(policy(IDX), ours)
