"""Losses that others published, for comparison: the source of each and the conditions it was measured under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptlab.system.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Reference:
    """Losses in nats per token that others reported.

    Args:
        conditions: how they were measured, in words.
        fixed: the config values that all of the figures share.
        figures: pairs of the config values that identify a figure, and the figure; words where no number was given.
    """

    source: str
    conditions: str
    fixed: dict[str, Any]
    figures: tuple[tuple[dict[str, Any], float | str], ...]

    def figure(self, facts: dict[str, Any]) -> float | str | None:
        """Return the figure for a run with these `Run.facts`; None if there is none."""
        matching = (value for keys, value in self.figures if all(facts.get(k) == v for k, v in keys.items()))
        return next(matching, None)

    def differences(self, facts: dict[str, Any]) -> list[str]:
        """List where this run's config differs from the reference's: ["model.n_embd=64 (there: 256)"]."""
        return [f"{k}={facts.get(k)} (there: {v})" for k, v in self.fixed.items() if facts.get(k) != v]

    def description(self, name: str, facts: list[dict[str, Any]]) -> str:
        """Describe the source and its conditions, and how the closest of these groups differs from them."""
        other = min((self.differences(each) for each in facts), key=len)
        unlike = f"; here, other than there, {', '.join(other)}" if other else ""
        return f"reference {name}: {self.source} ({self.conditions}){unlike}"


TEXT = {"data.name": "shakespeare_char"}
ABLATION = {**TEXT, "model.n_embd": 256, "model.block_size": 128, "model.dropout": 0.2}
LADDER: dict[str, float | str] = {
    "1_bigram": 2.5,
    "2_head": 2.4,
    "3_heads": 2.28,
    "4_feedforward": 2.24,
    "5_stacked": "no better",
    "6_residual": 2.08,
    "7_layernorm": 2.06,
    "8_scaled": 1.48,
}
REFERENCES = {
    "heads": Reference(
        "a README's ablation of heads",
        "n_embd 256, 4 layers, block 128, dropout 0.2, Tiny Shakespeare; learning rate, batch, steps, seeds not given",
        {**ABLATION, "model.n_layer": 4},
        tuple(({"model.n_head": n}, v) for n, v in ((1, 1.7172), (2, 1.6691), (4, 1.6393), (8, 1.6288))),
    ),
    "depth": Reference(
        "a README's ablation of layers",
        "n_embd 256, 4 heads, block 128, dropout 0.2, Tiny Shakespeare; learning rate, batch, steps, seeds not given",
        {**ABLATION, "model.n_head": 4},
        tuple(({"model.n_layer": n}, v) for n, v in ((2, 1.6960), (4, 1.6422), (6, 1.6331), (8, 1.6056))),
    ),
    "ladder": Reference(
        "the build-a-GPT lessons",
        "Tiny Shakespeare, 5000 steps, one seed; the mean of 200 random batches, not the whole split",
        TEXT,
        tuple(({"experiment": f"ladder_{rung}"}, figure) for rung, figure in LADDER.items()),
    ),
    "char": Reference(
        "nanoGPT",
        "Tiny Shakespeare; 1.4697 is the best of 20 estimates on 200 random batches, 1.905 is over the whole split",
        TEXT,
        (
            ({"model.n_layer": 6, "model.n_embd": 384, "model.block_size": 256}, 1.4697),
            ({"model.n_layer": 4, "model.n_embd": 128, "model.block_size": 64, "data.batch_size": 12}, 1.905),
        ),
    ),
}


def choose_reference(name: str, facts: list[dict[str, Any]]) -> str:
    """Return the name of the requested reference, or for "" of the one that has most figures for these groups.

    Raises:
        UserError: there is no reference of that name, or it has no figure for these groups.
    """
    if name and name not in REFERENCES:
        raise UserError(f"--reference {name}: there is no such reference; {did_you_mean(name, REFERENCES)}")

    def fits(each: str) -> tuple[int, int]:
        reference = REFERENCES[each]
        found = {str(figure) for group in facts if (figure := reference.figure(group)) is not None}
        return len(found), -min(len(reference.differences(group)) for group in facts)

    best = name or max(REFERENCES, key=fits)
    figures, unlike = fits(best)
    if not figures or (not name and figures == 1 and unlike):  # a single figure of a different model is no match
        keys = "; ".join(f"{each}: {', '.join(REFERENCES[each].figures[0][0])}" for each in REFERENCES)
        raise UserError(
            f"--reference{' ' + name if name else ''}: there is no figure for any of these runs; leave it out "
            f"(the references go by {keys})"
        )
    return best
