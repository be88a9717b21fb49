"""Losses, their gradients and advantages are TRL's to 1e-5 in fp32; where TRL's differ by definition, exactly so.

The models are tiny ones of transformers with random weights. TRL's trainers compute their losses on given ids.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlab.alignment.advantages import group_advantages
from gptlab.alignment.logprobs import kl_estimate, sequence_means, sequence_sums, token_logprobs
from gptlab.alignment.losses import DPO_VARIANTS, Loss, dpo_loss, policy_loss, reward_loss
from gptlab.data.batches import IGNORED

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 11), reason="TRL has nothing for Python 3.10"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # TRL sets an argument of transformers that is deprecated
]
V, PROMPT, ANSWER = 10, 3, 6
FAMILIES = ("gpt2", "llama")
LETTERS = "abcdefghij"


def build(family: str, scalar: bool = False, seed: int = 7) -> nn.Module:
    """A tiny model with opinions; with a scalar head in place of the vocabulary's, if `scalar`."""
    import transformers as hf

    torch.manual_seed(seed)
    shared = {"vocab_size": V, "bos_token_id": 9, "eos_token_id": 9, "pad_token_id": 8}
    shared |= {"num_labels": 1} if scalar else {}
    config: Any
    if family == "gpt2":
        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = hf.GPT2Config(n_positions=32, n_embd=16, n_layer=2, n_head=2, **off, **shared)
        model: nn.Module = (hf.GPT2ForSequenceClassification if scalar else hf.GPT2LMHeadModel)(config)
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 32}
        config = hf.LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes, **shared)
        model = (hf.LlamaForSequenceClassification if scalar else hf.LlamaForCausalLM)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


@dataclass
class Oracle:
    """A trainer of TRL's, and the model that it is asked about, apart from ours."""

    trainer: Any
    ours: nn.Module

    def compare(self, theirs: Tensor, ours: Tensor) -> None:
        """Compare two losses, and their gradients with respect to all weights."""
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for model, loss in ((self.trainer.model, theirs), (self.ours, ours)):
            model.zero_grad(set_to_none=True)
            loss.backward()
        expected, found = (dict(model.named_parameters()) for model in (self.trainer.model, self.ours))
        assert expected.keys() == found.keys()
        largest = 0.0
        for name, parameter in expected.items():
            if parameter.grad is None:
                assert found[name].grad is None or not found[name].grad.any()
                continue
            torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-5, rtol=1e-5)
            largest = max(largest, parameter.grad.abs().max().item())
        assert largest > 1e-3  # there was something to compare


def make(kind: str, family: str, folder: Path) -> Oracle:
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="a")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="j", pad_token="i")
    options: dict[str, Any] = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False}
    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    ours = build(family, scalar=kind == "reward")
    theirs = copy.deepcopy(ours)
    data: dict[str, Any] = {"processing_class": tokenizer, "train_dataset": rows}
    if kind == "dpo":
        reference = build(family, seed=11)
        return Oracle(trl.DPOTrainer(theirs, reference, trl.DPOConfig(**options), **data), ours)
    if kind == "reward":
        return Oracle(trl.RewardTrainer(theirs, args=trl.RewardConfig(**options), **data), ours)
    group = {"num_generations": 2, "per_device_train_batch_size": 2}
    args = trl.GRPOConfig(**options, **group, max_completion_length=ANSWER)
    trainer = trl.GRPOTrainer(theirs, lambda completions, **_: [0.0] * len(completions), args, **data)
    trainer.current_gradient_accumulation_steps = 1  # set by its loop
    return Oracle(trainer, ours)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """oracle("dpo", "gpt2") is made once."""
    made: dict[tuple[str, str], Oracle] = {}

    def oracle(kind: str, family: str) -> Oracle:
        if (kind, family) not in made:
            made[kind, family] = make(kind, family, tmp_path_factory.mktemp("trl"))
        return made[kind, family]

    return oracle


def batch(rows: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, (rows, PROMPT + ANSWER), the tokens that are no padding, and those of the answers, of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 8, (rows, PROMPT + ANSWER), generator=generator)
    lengths = torch.randint(1, ANSWER + 1, (rows, 1), generator=generator)
    place = torch.arange(PROMPT + ANSWER)
    there = place < PROMPT + lengths
    return ids.masked_fill(~there, 8), there, there & (place >= PROMPT)


def ours_of(model: nn.Module, ids: Tensor, there: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Our log-probabilities of the targets, and which count: (B, T) each, with T one less than the ids'."""
    logits = model(input_ids=ids, attention_mask=there.long()).logits[:, :-1]
    targets = ids.masked_fill(~answer, IGNORED)[:, 1:]
    return token_logprobs(logits, targets), targets != IGNORED


def columns(values: Tensor) -> Tensor:
    """(2 P,), first all chosen, then all rejected, as TRL has them -> (P, 2)."""
    return values.view(2, -1).T


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", DPO_VARIANTS)
def test_dpo_is_trls(oracle: Any, family: str, variant: str) -> None:
    it = oracle("dpo", family)
    it.trainer.loss_types, it.trainer.beta = [variant], 0.3
    ids, there, answer = batch(8)
    inputs = {"input_ids": ids, "attention_mask": there.long(), "completion_mask": answer.long()}
    it.trainer._metrics["train"].clear()
    theirs = it.trainer.compute_loss(it.trainer.model, inputs)
    logprobs, counted = ours_of(it.ours, ids, there, answer)
    with torch.no_grad():
        reference, _ = ours_of(build(family, seed=11), ids, there, answer)
    policy, held = (columns(sequence_sums(each, counted)) for each in (logprobs, reference))
    loss = dpo_loss(policy, held, columns(counted.sum(-1)), beta=0.3, variant=variant)
    it.compare(theirs, loss.mean)
    names = {"chosen_logprob": "logps/chosen", "rejected_logprob": "logps/rejected"}
    if variant == "sigmoid":  # in the others, TRL's reward is of the sum, and not what the loss compares
        names |= {"chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected"}
        names |= {"margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    for name, theirs_name in names.items():
        total, weight = loss.figures[name]
        assert (total / weight).item() == pytest.approx(it.trainer._metrics["train"][theirs_name][0], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("centring", [0.0, 0.1])
@pytest.mark.parametrize("with_margins", [False, True])
def test_the_reward_loss_is_trls(oracle: Any, family: str, with_margins: bool, centring: float) -> None:
    it = oracle("reward", family)
    it.trainer.args.center_rewards_coefficient = centring or None
    ids, there, _ = batch(8)
    margins = torch.rand(4, generator=torch.Generator().manual_seed(5)) if with_margins else None
    inputs = {"input_ids": ids, "attention_mask": there.long()}
    theirs = it.trainer.compute_loss(it.trainer.model, inputs | ({"margin": margins} if with_margins else {}))
    rewards = it.ours(**inputs).logits.squeeze(-1)
    loss = reward_loss(columns(rewards), margins, centring)
    it.compare(theirs, loss.mean)
    total, weight = loss.figures["accuracy"]
    assert (total / weight).item() == it.trainer._metrics["train"]["accuracy"][-1]


def rollouts(it: Oracle, rows: slice = slice(None)) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What TRL's loss takes, and what ours takes, of the same 6 answers; the policy has moved since the sampling."""
    ids, there, answer = batch(6)
    generator = torch.Generator().manual_seed(9)
    logprobs, counted = ours_of(it.ours, ids, there, answer)
    near = [logprobs.detach() + 0.3 * torch.randn(counted.shape, generator=generator) for _ in range(2)]
    advantages = torch.randn(6, generator=generator)
    (old, reference), first = near, PROMPT - 1  # TRL has the answers' positions only
    theirs = {
        "prompt_ids": ids[rows, :PROMPT],
        "prompt_mask": there[rows, :PROMPT].long(),
        "completion_ids": ids[rows, PROMPT:],
        "completion_mask": answer[rows, PROMPT:].long(),
        "advantages": advantages[rows],
        "old_per_token_logps": old[rows, first:],
        "ref_per_token_logps": reference[rows, first:],
        "num_items_in_batch": counted.sum(),
    }
    ours = {
        "logprobs": logprobs[rows],
        "old_logprobs": old[rows],
        "advantages": advantages[rows],
        "counted": counted[rows],
        "kl": kl_estimate(logprobs, reference, "k3")[rows],
        "length": ANSWER,
    }
    return theirs, ours


def set_up(it: Oracle, loss_type: str, ratio: str = "token", kl_coef: float = 0.0, high: float = 0.2) -> None:
    trainer = it.trainer
    trainer.loss_type, trainer.importance_sampling_level, trainer.beta = loss_type, ratio, kl_coef
    trainer.epsilon_low, trainer.epsilon_high = 0.2, high
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize("kl", ["", "k3", "k3_weighted"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize(
    ("loss_type", "normalise"), [("dapo", "token"), ("bnpo", "token"), ("grpo", "sequence"), ("dr_grpo", "constant")]
)
def test_the_policy_loss_is_trls(
    oracle: Any, family: str, loss_type: str, normalise: str, ratio: str, kl: str, high: float
) -> None:
    """With a ratio for each answer, TRL weighs KL by that, too, and ours by the token's own."""
    it, kl_coef = oracle("grpo", family), 0.2 if kl else 0.0
    set_up(it, loss_type, ratio, kl_coef, high)
    it.trainer.args.use_bias_correction_kl = kl == "k3_weighted"
    inputs, ours = rollouts(it)
    reference = torch.nn.functional.pad(inputs["ref_per_token_logps"], (PROMPT - 1, 0))
    if kl == "k3_weighted":
        log_ratio = ours["logprobs"] - ours["old_logprobs"]
        if ratio == "sequence":
            ours["kl"] = ours["kl"] * sequence_means(log_ratio, ours["counted"]).exp()[:, None]
        else:
            ours["kl"] = kl_estimate(ours["logprobs"], reference, kl, ours["old_logprobs"])
    theirs = it.trainer.compute_loss(it.trainer.model, inputs)
    loss = policy_loss(**ours, ratio=ratio, normalise=normalise, clip=0.2, clip_high=high, kl_coef=kl_coef)
    it.compare(theirs, loss.mean)


@pytest.mark.parametrize("family", FAMILIES)
def test_purely_on_policy_it_is_trls_too(oracle: Any, family: str) -> None:
    it = oracle("grpo", family)
    set_up(it, "dapo")
    inputs, ours = rollouts(it)
    del inputs["old_per_token_logps"]
    theirs = it.trainer.compute_loss(it.trainer.model, inputs)
    it.compare(theirs, policy_loss(**ours | {"old_logprobs": None}).mean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("loss_type", "normalise", "same"),
    [("dapo", "token", True), ("grpo", "sequence", True), ("dr_grpo", "constant", True), ("bnpo", "token", False)],
)
def test_two_micro_batches_are_trls_except_for_its_mean_of_means(
    oracle: Any, family: str, loss_type: str, normalise: str, same: bool
) -> None:
    """Fault 9: TRL's `bnpo` is the mean of the micro-batches' means over tokens; its `dapo` is the step's mean."""
    it = oracle("grpo", family)
    set_up(it, loss_type)
    it.trainer.current_gradient_accumulation_steps = it.trainer.args.steps_per_generation = 2
    theirs, parts = torch.zeros(()), []
    for rows in (slice(0, 3), slice(3, 6)):
        inputs, ours = rollouts(it, rows)
        theirs = theirs + it.trainer.compute_loss(it.trainer.model, inputs)
        parts.append(policy_loss(**ours, normalise=normalise))
    whole: Loss = parts[0] + parts[1]
    if same:
        it.compare(theirs, whole.mean)
    else:
        it.compare(theirs, (parts[0].mean + parts[1].mean) / 2)
        assert abs(theirs.item() - whole.mean.item()) > 1e-3


@pytest.mark.parametrize(("loss_type", "normalise"), [("grpo", "sequence"), ("dr_grpo", "constant")])
def test_an_answer_that_does_not_count_is_in_trls_denominator_and_not_in_ours(
    oracle: Any, loss_type: str, normalise: str
) -> None:
    """Fault 10, and the one difference between the two: 6 answers of which 5 count."""
    it = oracle("grpo", "gpt2")
    set_up(it, loss_type)
    inputs, ours = rollouts(it)
    inputs["completion_mask"] = inputs["completion_mask"].clone()
    inputs["completion_mask"][2] = 0
    ours["counted"] = ours["counted"].clone()
    ours["counted"][2] = False
    theirs = it.trainer.compute_loss(it.trainer.model, inputs)
    it.compare(theirs, policy_loss(**ours, normalise=normalise).mean * 5 / 6)


@pytest.mark.parametrize(("baseline", "scaled"), [("mean", "none"), ("mean_std", "group")])
def test_group_advantages_are_trls(oracle: Any, monkeypatch: pytest.MonkeyPatch, baseline: str, scaled: str) -> None:
    trainer = oracle("grpo", "gpt2").trainer
    rewards = torch.randn(4, 4, generator=torch.Generator().manual_seed(9))
    rewards[1, 2] = float("nan")  # no reward function had a reward for it
    rewards[3] = 0.5
    answers = [[1, 2]] * 16
    generated = (answers, answers, None, [""] * 16, None, {}, None, None)
    monkeypatch.setattr(trainer, "_generate", lambda prompts: generated)
    monkeypatch.setattr(trainer, "_calculate_rewards", lambda *_: rewards.view(16, 1))
    for name, value in {"num_generations": 4, "scale_rewards": scaled, "beta": 0.0}.items():
        monkeypatch.setattr(trainer, name, value)
    theirs = trainer._generate_and_score_completions([{"prompt": "a"}] * 16)["advantages"]
    ours = group_advantages(rewards, baseline, ~rewards.isnan())
    torch.testing.assert_close(ours.flatten(), theirs, atol=1e-5, rtol=1e-5)
