"""Which part of a trained model `task.train` trains further."""

from __future__ import annotations

from gptlab.models import Model
from gptlab.models.gpt import GPT
from gptlab.models.heads import HeadedGPT, has_logits, language_model
from gptlab.system.errors import UserError, did_you_mean

PARTS = ("all", "head", "last_block")


def train_only(model: Model | HeadedGPT, part: str) -> None:
    """Freeze what a run does not train.

    Args:
        part: all; head: the head alone, that is the classifier's, the reward model's, or else the one over the
            vocabulary (a policy with a value head has both); last_block: the head, the norm before it, and the last
            block. Of a tied model last_block leaves out the head over the vocabulary. A head whose output is not used
            is frozen in any case.

    Raises:
        UserError: there is no such part, or the model cannot train it alone.
    """
    if part not in PARTS:
        raise UserError(f"task.train={part!s:.99}: no such part; {did_you_mean(f'{part!s:.99}', PARTS)}")
    gpt = language_model(model)
    if not isinstance(gpt, GPT):
        if part != "all":
            raise UserError(f"task.train={part}: a {type(gpt).__name__} is one table; use task.train=all")
        gpt.requires_grad_()
        return
    if part == "head" and has_logits(model) and gpt.config.tied:
        raise UserError(
            "task.train=head: the head of this model is its embedding, too (model.tied=true), which the first block "
            "reads; use task.train=last_block or task.train=all"
        )
    model.requires_grad_(part == "all")
    if not gpt.config.tied:
        gpt.lm_head.requires_grad_(has_logits(model))
    if isinstance(model, HeadedGPT):
        model.score.requires_grad_()
    if part == "last_block":
        gpt.h[-1].requires_grad_()
        gpt.ln_f.requires_grad_()
