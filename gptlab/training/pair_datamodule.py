"""The LightningDataModule of preferences: pairs of a better and a worse answer to a prompt."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from gptlab.alignment.preferences import gold_differences, sample_preferences, write_preferences
from gptlab.alignment.rewards import bayes_accuracy, open_reward
from gptlab.data.batches import Batch
from gptlab.data.chat import sources
from gptlab.data.chat.batches import PairRows
from gptlab.data.chat.chat_format import Format
from gptlab.data.chat.conversations import Conversation, Preference, read_examples
from gptlab.data.chat.encoding import answerable, encode_preferences
from gptlab.data.chat.example_set import PREFERENCES, ExampleSet
from gptlab.data.config import DataConfig
from gptlab.data.tokenizers import Tokenizer
from gptlab.formats import open_model
from gptlab.formats.adapters import digest
from gptlab.models import Model
from gptlab.system.errors import UserError, amount
from gptlab.training.example_datamodule import ExampleDataModule
from gptlab.training.tasks import RewardConfig

FORM = 2  # of the pairs that are kept in the cache folder: which answers are sampled anew
log = logging.getLogger(__name__)


class PairDataModule(ExampleDataModule):
    """Batches of pairs; see `PairBatch`."""

    form = PREFERENCES

    def load(self) -> ExampleSet:
        if self.config.name != "preferences":
            return super().load()
        assert self.source is not None  # see `task_checks`
        return sampled_pairs(self.config, self.source)

    def rows_of(
        self, part: str, said: ExampleSet, tokenizer: Tokenizer, chat: Format | None, counts: Counter[str]
    ) -> PairRows:
        assert chat is not None
        self._check_margins(said.parts[part])
        encoded = encode_preferences(
            said.parts[part],
            chat,
            self.block_size,
            counts,
            too_long=self.task.too_long,
            end_is_read=isinstance(self.task, RewardConfig),
        )
        return PairRows(encoded, self.block_size)

    def _check_margins(self, pairs: Sequence[Preference]) -> None:
        """Check that each pair has a margin where one is asked for."""
        if not isinstance(self.task, RewardConfig) or self.task.margin != "data":
            return
        for each in pairs:
            if each.difference is None:
                raise UserError(
                    f"{each.where}: it has no margin, which task.margin=data asks for: a number under margin, or "
                    f"gold_chosen and gold_rejected; add it to each row, or use task.margin=none"
                )

    def held_out(self, part: str) -> Sequence[Conversation]:
        pairs: list[Preference] = self.prepared.said.parts[part]
        return [Conversation(each.prompt + each.chosen, len(each.prompt), each.where) for each in pairs]

    @property
    def noise(self) -> float | None:
        """The temperature of the labels, where that and the true rewards are known."""
        return self.config.problems["noise"] if self.config.name == "preferences" else None

    def bayes_accuracy(self, part: str) -> float | None:
        """Return the accuracy of knowing the true rewards, on the pairs of a part; None: they are not known."""
        if self.noise is None:
            return None
        differences = gold_differences(self.prepared.said.parts[part])
        assert differences is not None  # each pair was sampled with its rewards
        return bayes_accuracy(differences, self.noise)

    def fixed_batch(self, tokens: int) -> Batch:
        rows = self.prepared.rows["val"]
        count = max(tokens // self.block_size, 1)
        found = rows.batch(range(count), range(count), None, torch.device("cpu"))
        return Batch(found.idx[:count], found.targets[:count])


def sampled_pairs(config: DataConfig, name: str) -> ExampleSet:
    """Return the pairs of data=preferences: sampled from a model once, and then read from the cache folder.

    Args:
        name: the model, see `open_model.load_model`.

    Raises:
        UserError: there is no such model, it cannot answer, or `data.problems` is wrong.
    """
    model, tokenizer, info = open_model.load_model(name, raw_dir=config.folder("dir"))
    prompts = sources.preference_prompts(config)
    chat = info.chat
    if chat is None:
        raise UserError(f"data=preferences: init_from={name} has not learned to answer; give a run of task=sft")
    asked = {part: [each.messages[:-1] for each in found] for part, found in prompts.items()}
    about = [FORM, digest(model), tokenizer.to_dict(), chat.as_template(), config.problems, asked]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    parts: dict[str, list[Preference]] = {}
    for part, found in prompts.items():
        path = config.folder("cache_dir") / "preferences" / key / f"{part}.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sample(config, part, found, model, chat, path)
        parts[part] = read_examples([path]).rows
    named = {"train": parts["train"], **sources.divide_held_out(parts["held_out"], config)}
    return ExampleSet("preferences", PREFERENCES, named, known=False)


def _sample(
    config: DataConfig,
    part: str,
    prompts: Sequence[Conversation],
    model: Model,
    chat: Format,
    path: Path,
) -> None:
    """Sample the pairs of a part, and write them."""
    problems = sources.check_problems("preferences", config.problems)
    assert isinstance(problems, sources.PreferencesNode)
    counts = Counter[str]()
    room = model.config.block_size + 1 - problems.answer_tokens
    fitting = (answerable(each, chat, room) for each in prompts)
    asked = [each.messages[:-1] for each in fitting if each is not None]
    if not asked:
        raise UserError(
            f"data.problems.answer_tokens={problems.answer_tokens}: no prompt leaves room for such an answer in the "
            f"block_size={model.config.block_size} of init_from; make it smaller"
        )
    count = problems.pairs if part == "train" else problems.held_out_pairs
    log.info("sampling %s of answers of the model, once", amount(count, "pair"))
    found = sample_preferences(
        model,
        chat,
        asked,
        open_reward(problems.reward, problems.argument or ""),
        counts,
        pairs=count,
        temperature=problems.temperature,
        noise=problems.noise,
        seed=problems.seed,
        max_new_tokens=problems.answer_tokens,
    )
    for what, number in counts.items():
        log.warning("%s: %s", amount(number, "pair"), what)
    write_preferences(path, found)
