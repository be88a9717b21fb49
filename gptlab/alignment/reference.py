"""The reference: the model that a policy began as, which DPO and KL penalties compare it to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from gptlab.models import Model, Network
from gptlab.models.heads import language_model
from gptlab.models.lora import adapters_off


class Reference:
    """A frozen copy of a model, or the policy itself with its adapters switched off.

    Args:
        model: the model that is copied; None: the policy has adapters.
    """

    def __init__(self, model: Model | None) -> None:
        self.frozen = None if model is None else copy.deepcopy(model).requires_grad_(False).eval()

    @contextmanager
    def beside(self, policy: Network) -> Iterator[Model]:
        """Provide the reference on the policy's device and in its type, in evaluation mode.

        Without a copy the policy is the reference inside, and must not be used as itself.
        """
        model = language_model(policy)
        if self.frozen is not None:
            weight = next(model.parameters())
            yield self.frozen.to(weight.device, weight.dtype)
            return
        training = model.training
        with adapters_off(model):
            try:
                yield model.eval()
            finally:
                model.train(training)
