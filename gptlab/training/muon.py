"""Muon for the matrices inside a network and AdamW for the rest of it, as one optimizer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

A, B, C = 3.4445, -4.7750, 2.0315  # coefficients of A x + B x^3 + C x^5, one step of `orthogonalized`
EPS = 1e-7  # lower bound of the norm that a matrix is divided by


def orthogonalized(x: Tensor, steps: int) -> Tensor:
    """Replace the singular values of matrices (N, r, c), r <= c, by values near 1 (0.7 to 1.2 after 5 steps).

    Each step of the Newton-Schulz iteration (Jordan 2024, https://kellerjordan.github.io/posts/muon/) makes x
    P(x x^T) x with P(g) = A + B g + C g^2. All products are polynomials in the first g = x x^T, so for matrices more
    than 1.5 times as wide as high it is cheaper to multiply (r, r) matrices and x once, at the end. In fp32 the result
    is equal up to rounding; in bf16 it is not, since g holds the squares of the singular values.
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
    """Return the dtype for `orthogonalized`: bf16, which is exact enough, on a GPU that has it; else fp32."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, `orthogonalized` and scaled by sqrt(max(1, rows / columns)), which is Jordan's convention.

    A step thus changes the output of a matrix equally for every shape, and one learning rate suits all. (With the
    convention of Liu et al. 2025, https://arxiv.org/abs/2502.16982, 0.2 sqrt(max(rows, columns)), it would be AdamW's.)
    Weight decay is decoupled. Matrices of the same shape are stacked and orthogonalized in batches.

    With "nor_beta" above 0 the rows of a step are normalized by a running average of their squares, and the step keeps
    its norm: NorMuon (Li et al. 2025, https://arxiv.org/abs/2510.05491).

    The attribute `found_inf`, if set, is 1 if a step must change nothing; reading it does not wait for a GPU.

    Args:
        groups: parameter groups; those with "momentum", "ns_steps" and "nor_beta" hold matrices for Muon, others AdamW.
        parts: the rows of each projection in a matrix that stacks several, which are orthogonalized separately.
        betas, eps: AdamW's.
        fused: whether AdamW runs as one kernel.
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
                self._step_matrices(group, bad)
        # load_state_dict replaces the groups and the state.
        self.adam.param_groups = [group for group in self.param_groups if "momentum" not in group]
        self.adam.state = self.state
        self.adam.found_inf = bad  # type: ignore[attr-defined]
        self.adam.step()
        return loss

    def _step_matrices(self, group: dict[str, Any], bad: Tensor | None) -> None:
        """Make Muon's step of a group; `bad`, () on a GPU, is 1 if the step must change nothing."""
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
                x = _normalize_rows(x, row_squares, (1 - group["nor_beta"]) * made)
            torch._foreach_sub_(parts, (x * made).unbind(), alpha=group["lr"] * math.sqrt(max(1, r / c)))


def _normalize_rows(x: Tensor, squares: tuple[Tensor, ...], weight: Any) -> Tensor:
    """Divide the rows of x (N, r, c) by their running root mean squares, and keep the norm of each matrix.

    Args:
        squares: the running averages of the mean squares, (r, 1) for each matrix; updated in place.
        weight: the weight of the new values in these averages.
    """
    mean = x.float().square().mean(-1, keepdim=True)  # (N, r, 1)
    running = torch.stack(squares).float().lerp_(mean, weight)
    torch._foreach_copy_(squares, running.unbind())
    even = x * (running + EPS**2).rsqrt().to(x.dtype)
    return even * (x.norm(dim=(-2, -1), keepdim=True) / even.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS))
