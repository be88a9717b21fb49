"""Decide by which number runs compare: nats per token where the tokens are the same, bits per byte, or a score."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from gptlab.reports.records import Run, comparable_value
from gptlab.runs.identity import LOSS_KEYS, REWARD
from gptlab.runs.upgrades import DATA, NEW

NATS, BITS = "val/loss", "val/bpb"
HELD_OUT = ("data.split", "data.val_fraction", "data.test_fraction")  # which part of a text is validated on
TOKENS = "nats per token"
LOSSES = {  # the unit of a task's val/loss
    **{"pretrain": TOKENS, "sft": TOKENS, "classify": "nats per text", "reward": "nats per pair", "dpo": "per pair"},
    **{"ppo": "minus the reward", "grpo": "minus the reward"},
}
UNITS = {
    "bpb": "bits per byte",
    "kl": "nats per answer",
    "entropy": TOKENS,
    "text_loss": TOKENS,
    "answer_tokens": "tokens",
}
SCORES = ("val/reward", "test/reward", "val/accuracy", "test/accuracy")  # what decides where losses do not compare
ACCURACIES = {  # what a task's accuracy is the share of
    **dict.fromkeys(("sft", "ppo", "grpo"), "exact answers"),
    **dict.fromkeys(("dpo", "reward"), "pairs with a positive margin"),
    "classify": "texts in their class",
}
SCORE_KEYS = {"reward": REWARD, "win_rate": REWARD, "judged_reward": ("reward.model", "reward.unended")}
SHARES = ("accuracy", "bayes_accuracy", "expected_accuracy", "stop_rate", "win_rate", "pass_at_", "f1")
HIGHER = (*SHARES, "reward", "judged_reward")
IN_BITS = {"test/loss": "test/bpb"}  # other losses than `NATS`, and what compares in their place


def higher_is_better(metric: str) -> bool:
    """Return whether a measure is a score, as accuracy, reward or win rate, and no loss or divergence."""
    return metric.rpartition("/")[2].startswith(HIGHER)


def is_share(metric: str) -> bool:
    """Return whether a measure is from 0 to 1."""
    return metric.rpartition("/")[2].startswith(SHARES)


def is_loss(metric: str) -> bool:
    """Return whether a measure is the loss of a run's task, and not one that is measured beside."""
    return metric.rpartition("/")[2] in ("loss", "best_val_loss")


def unit(metric: str, tasks: Collection[str]) -> str:
    """Return the unit of a measure of runs with these tasks; "" if it has none, or they differ in it."""
    kind = metric.rpartition("/")[2]
    found = {LOSSES.get(task, "") for task in tasks} if is_loss(metric) else {UNITS.get(kind, "")}
    return found.pop() if len(found) == 1 else ""


def loss_is_trained(tasks: Collection[str]) -> bool:
    """Return whether train/loss and val/loss are one measure of all the runs: PPO and GRPO train on other losses."""
    return unit(NATS, tasks) not in ("", LOSSES["grpo"])


def axis_label(metric: str, tasks: Collection[str]) -> str:
    """Return a measure with its unit, if it has one: val/loss (nats per token)."""
    return f"{metric} ({found})" if (found := unit(metric, tasks)) else metric


def vocabularies(runs: Sequence[Run]) -> list[str]:
    """Return the distinct vocabularies of runs in words: "bpe of 512"; where one does not say its size, the names."""
    found = [(_of(run, "tokenizer", "tokenizer.name"), _of(run, "vocab_size", "tokenizer.vocab_size")) for run in runs]
    sized = all(size is not None for _, size in found)
    return list(dict.fromkeys(f"{name} of {size}" if sized else str(name) for name, size in found))


def _of(run: Run, fact: str, key: str) -> Any:
    """Return a fact about a run's data; of an older run, whose summary lacks it, what its config says."""
    return run.summary.get(f"data.{fact}", run.config.get(key))


def texts(runs: Sequence[Run]) -> int:
    """Return how many different texts, or parts of a text, the runs are validated on."""
    held_out = [
        tuple(run.config.get(key, DATA.get(key.partition(".")[2])) for key in HELD_OUT) for run in runs
    ]  # an older run had no choice
    return len({(run.summary["data.sha256"], *parts) for run, parts in zip(runs, held_out, strict=True)})


def tasks_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the distinct tasks of runs."""
    return tuple(dict.fromkeys(run.task for run in runs))


def differing(runs: Sequence[Run], keys: Iterable[str]) -> list[str]:
    """Return the config keys in which runs differ, each with its values: "task.beta (0.1, 0.5)"."""
    values = {key: list(dict.fromkeys(_setting(run, key) for run in runs)) for key in keys}
    return [f"{key} ({_listed(found)})" for key, found in values.items() if len(found) > 1]


def _setting(run: Run, key: str) -> Any:
    """Return the value of a config key; of an older run, whose config lacks it, what such runs did."""
    group, _, name = key.partition(".")
    return comparable_value(run.config.get(key, NEW.get(group, {}).get(name)))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{each!s:.48}" for each in values[:5]) + ", ..." * (len(values) > 5)


def _loss_keys(tasks: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(key for task in tasks for key in LOSS_KEYS.get(task, ())))


def _kinds_of_accuracy(metric: str, tasks: Sequence[str]) -> list[str]:
    """Return what an accuracy is the share of, with the tasks: "exact answers (sft, grpo)"; none of another metric."""
    kinds: dict[str, list[str]] = {}
    for task in tasks if metric.endswith("/accuracy") else ():
        kinds.setdefault(ACCURACIES.get(task, "something else"), []).append(task)
    return [f"{kind} ({', '.join(some)})" for kind, some in kinds.items()]


def deciding_metric(runs: Sequence[Run]) -> str:
    """Return the metric by which the runs are sorted and compared unless another is asked for."""
    tasks = tasks_of(runs)
    if not loss_is_trained(tasks) or differing(runs, _loss_keys(tasks)):
        shared = (key for key in SCORES if all(is_number(run.summary.get(key)) for run in runs))
        return next((key for key in shared if len(_kinds_of_accuracy(key, tasks)) < 2), NATS)
    comparable = unit(NATS, tasks) != TOKENS or (len(vocabularies(runs)) == 1 and texts(runs) == 1)
    return NATS if comparable or not all(is_number(run.summary.get(BITS)) for run in runs) else BITS


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def notes(runs: Sequence[Run], metric: str, chosen: bool) -> list[str]:
    """Return sentences that say which numbers of these runs do not compare.

    Args:
        metric: the metric of the report.
        chosen: whether it was chosen by `deciding_metric`.
    """
    tasks = tasks_of(runs)
    found = []
    if not unit(NATS, tasks):
        found.append(_note_on_losses(f"the tasks differ ({', '.join(tasks)})", metric, chosen))
    elif is_loss(metric) or (chosen and loss_is_trained(tasks)):
        keys = differing(runs, _loss_keys(tasks))
        found += [_note_on_losses(f"the runs differ in {', '.join(keys)}", metric, chosen)] if keys else []
    if len(kinds := _kinds_of_accuracy(metric, tasks)) > 1:
        found.append(f"{metric} is the share of different things: {', '.join(kinds)}")
    if keys := differing(runs, SCORE_KEYS.get(metric.rpartition("/")[2], ())):
        found.append(f"the runs differ in {', '.join(keys)}: {metric} does not compare them")
    if unit(NATS, tasks) == TOKENS:
        return found + _notes_on_texts(runs, metric, chosen)
    if (different := texts(runs)) > 1:
        found.append(f"the runs are validated on {different} different data sets: what differs may be the data alone")
    return found


def _note_on_losses(why: str, metric: str, chosen: bool) -> str:
    """Return the sentence that says what compares runs whose losses are not one measure."""
    if is_loss(metric):
        return f"{why}: their losses do not compare; use --metric with a measure that all of them have"
    decides = f"{metric} decides; " if chosen else ""
    return f"{why}: {decides}their losses, val/loss and train among them, do not compare"


def _notes_on_texts(runs: Sequence[Run], metric: str, chosen: bool) -> list[str]:
    """Return sentences that say whether nats per token, or bits per byte, compare the runs."""
    known, different = vocabularies(runs), texts(runs)
    found = []
    if len(known) > 1:
        which = _listed(known)
        if metric.endswith("loss"):
            instead = IN_BITS.get(metric, BITS)
            found.append(f"{metric} does not compare tokenizers ({which}): use --metric {instead}")
        elif chosen:
            found.append(
                f"the vocabularies differ ({which}): {BITS}, bits per byte, decides; val/loss, train and gap are nats "
                f"per token and do not compare"
            )
        if any(name.startswith("word") for name in known):
            found.append("tokenizer=word leaves out white space and rare words: not even bits per byte compare with it")
    if different > 1:
        found.append(
            f"the runs are validated on {different} different texts: neither nats per token nor bits per byte say "
            f"which model is better"
        )
    if (chosen or is_loss(metric)) and (keys := differing(runs, ("task.loss_on",))):  # val/loss is of answers alone
        found.append(f"the runs differ in {', '.join(keys)}: train/loss and gap do not compare")
    return found
