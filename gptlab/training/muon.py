"""Muon for the matrices inside a network and AdamW for the rest of it, as one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

A, B, C = 3.4445, -4.7750, 2.0315  # of a x + b x^3 + c x^5, a step of `orthogonalized`
EPS = 1e-7  # the least norm that a matrix is divided by


def orthogonalized(x: Tensor, steps: int) -> Tensor:
    """Matrices (N, r, c), r <= c, with singular values of about 1 (0.7 to 1.2 after 5 steps) in place of their own.

    Newton-Schulz iteration (Jordan 2024, https://kellerjordan.github.io/posts/muon/): x becomes P(x x^T) x with the
    polynomial P(g) = A + B g + C g^2, again and again. All these products are polynomials in the first g = x x^T, so
    that for wide matrices only (r, r) products are made and x is multiplied once, at the end: from 1.5 times as wide
    that is fewer operations, and in fp32 the same to rounding. In bf16 it would not be, for g has the squares of the
    singular values.
    """
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    short = x.dtype == torch.float32 and 2 * x.shape[2] > 3 * x.shape[1]
    q, g = None, torch.bmm(x, x.mT)  # (N, r, r)
    for step in range(steps):
        p = torch.baddbmm(g, g, g, beta=B, alpha=C)  # P(g) - a
        last = step + 1 == steps
        if short:
            p.diagonal(dim1=-2, dim2=-1).add_(A)
            q = p if q is None else torch.bmm(p, q)
            g = g if last else torch.bmm(p, torch.bmm(p, g))
        else:
            x = torch.baddbmm(x, p, x, beta=A)
            g = g if last else torch.bmm(x, x.mT)
    return x if q is None else torch.bmm(q, x)


def products_in(device: torch.device) -> torch.dtype:
    """What `orthogonalized` is made in: bf16, which is exact enough, where a GPU has it; else fp32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


class Muon(torch.optim.Optimizer):
    """Steps of Nesterov's momentum, `orthogonalized` and times sqrt(max(1, rows / columns)): Jordan's convention.

    So a step changes the output of a matrix as much whatever its shape is, and one learning rate suits all. (The other
    convention, 0.2 sqrt(max(rows, columns)) of Liu et al. 2025, https://arxiv.org/abs/2502.16982, has AdamW's rates.)
    Weight decay is decoupled. Matrices of one shape are stacked and turned by batched products.

    With "nor_beta" above 0, as a memory, the rows of a step are made about as large as each other, over time, and the
    step as large as before: NorMuon (Li et al. 2025, https://arxiv.org/abs/2510.05491).

    The attribute `found_inf`, where there is one, is 1 if a step is to change nothing; no GPU is waited for to know.

    Args:
        groups: those with a "momentum" (and "ns_steps" and "nor_beta") are Muon's, all of 2 dimensions; others AdamW's.
        parts: of a matrix in which several projections are stacked the rows of each, which are turned by themselves.
        fused: AdamW in one kernel.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        parts: Mapping[nn.Parameter, Sequence[int]],
        betas: tuple[float, float],
        eps: float,
        fused: bool,
    ) -> None:
        self.parts = parts
        rest = [group for group in groups if "momentum" not in group]
        self.adam = torch.optim.AdamW(rest, betas=betas, eps=eps, fused=fused)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        bad: Tensor | None = getattr(self, "found_inf", None)
        if bad is not None and bad.is_cpu:
            if bad:
                return loss
            bad = None
        for group in self.param_groups:
            if "momentum" in group:
                self._turn(group, bad)
        # The groups and the state are others after load_state_dict.
        self.adam.param_groups = [group for group in self.param_groups if "momentum" not in group]
        self.adam.state = self.state
        self.adam.found_inf = bad  # type: ignore[attr-defined]
        self.adam.step()
        return loss

    def _turn(self, group: dict[str, Any], bad: Tensor | None) -> None:
        """Muon's step of a group; `bad`: () on a GPU, 1 if it is to change nothing."""
        weights: list[Any] = [p for p in group["params"] if p.grad is not None]
        gradients: list[Tensor] = [p.grad for p in weights if p.grad is not None]
        for p in weights:
            if "momentum_buffer" not in self.state[p]:
                self.state[p] |= {"momentum_buffer": torch.zeros_like(p), "row_squares": p.new_zeros(len(p), 1)}
        buffers = [self.state[p]["momentum_buffer"] for p in weights]
        made: Any = 1.0
        if bad is not None:
            made = 1 - bad
            gradients = [torch.where(bad > 0, m, g) for m, g in zip(buffers, gradients, strict=True)]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"] * made)
        alike = defaultdict(list)  # by shape
        for p, update in zip(weights, updates, strict=True):
            rows = self.parts.get(p, (len(p),))
            stacked = (t.split(rows) for t in (p, update, self.state[p]["row_squares"]))
            for part, direction, squares in zip(*stacked, strict=True):
                alike[tuple(part.shape)].append((part, direction, squares))
        for (r, c), triples in alike.items():
            parts, directions, row_squares = zip(*triples, strict=True)
            x = torch.stack(directions)  # (N, r, c)
            x = (x if r <= c else x.mT).to(products_in(x.device))
            x = orthogonalized(x, group["ns_steps"])
            x = (x if r <= c else x.mT).to(parts[0].dtype)
            if group["nor_beta"]:
                x = _even(x, row_squares, (1 - group["nor_beta"]) * made)
            torch._foreach_sub_(parts, (x * made).unbind(), alpha=group["lr"] * math.sqrt(max(1, r / c)))


def _even(x: Tensor, squares: tuple[Tensor, ...], weight: Any) -> Tensor:
    """x (N, r, c), rows over the roots of their mean squares, of which `squares` (r, 1) each are a running average.

    Each matrix stays as large as it was.
    """
    mean = x.float().square().mean(-1, keepdim=True)  # (N, r, 1)
    running = torch.stack(squares).float().lerp_(mean, weight)
    torch._foreach_copy_(squares, running.unbind())
    even = x * (running + EPS**2).rsqrt().to(x.dtype)
    return even * (x.norm(dim=(-2, -1), keepdim=True) / even.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS))
