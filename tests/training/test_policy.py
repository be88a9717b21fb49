"""Runs of task=grpo and task=ppo: from a model that answers, by the rewards of its own answers, to a better one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from gptlab.data.chat.chat_format import ChatFormat
from gptlab.data.chat.template import ChatTemplate
from gptlab.formats import checkpoint
from gptlab.formats.open_model import load_model
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training import judges
from tests.conftest import TINY, Result
from tests.distributed.test_processes import start, torchrun  # noqa: F401 (fixtures)
from tests.training.runs_compared import assert_same_run, points
from tests.training.test_fit import curve
from tests.training.test_resume import Kill, interrupt
from tests.training.test_sft import COLOURS, SFT, chats  # noqa: F401 (a fixture)

SHORT = ("task.answer_tokens=9", "task.samples=2", "data.batch_size=8", "schedule=constant", "data.test_fraction=0.1")
SHORT += ("task.group=4", "trainer.max_steps=4", "trainer.val_every=2", "data.val_fraction=0.2", "trainer.log_every=1")
GRPO = ("task=grpo", *SHORT)
PPO = ("task=ppo", *SHORT, "task.updates=2")
LORA = ("lora.rank=2", "lora.targets=[q,v,c_fc]")
SOME = ("reward.name=regex", "reward.argument=e")  # so that a step's answers do not all earn the same
KINDS = {
    "grpo": (*GRPO, "task.kl_coef=0.1"),
    "grpo, 2 updates": (*GRPO, "task.updates=2", "task.clip=0.2"),
    "ppo": PPO,
    "grpo with adapters": (*GRPO, *LORA, "task.kl_coef=0.1"),
    "ppo with adapters": (*PPO, *LORA),
}


@pytest.fixture(scope="session")
def base(run: Any, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run that knows some of the colours, and was trained with dropout; not to be written to."""
    run_dir = tmp_path_factory.mktemp("base") / "sft"
    learned = ("trainer.max_steps=60", "trainer.val_every=60", "optim.lr=1e-2", "data.batch_size=3")
    dropout = ("schedule=constant", "model.dropout=0.2", "model.attn_dropout=0.3", "trainer.log_every=20")
    run(run_dir, *SFT, f"data.path={chats}", *learned, *dropout)
    return run_dir


@pytest.fixture(scope="session")
def improve(compose: Any, run: Any, base: Path, chats: Path) -> Any:  # noqa: F811
    """improve(run_dir, *overrides) goes on from `base`, by the rewards of its answers to the same prompts."""

    def improve(run_dir: Path, *overrides: str, begin: Path = base, **options: Any) -> dict[str, Any]:
        own = ("data=chat", f"data.path={chats}", "model.block_size=47", "tokenizer=pretrained")
        return run(run_dir, *own, f"init_from={begin}", *overrides, **options)

    return improve


@pytest.fixture(scope="session")
def grpo(improve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "grpo"
    improve(run_dir, *KINDS["grpo"])
    return run_dir


@pytest.fixture(scope="session")
def ppo(improve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished short run; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "ppo"
    improve(run_dir, *KINDS["ppo"])
    return run_dir


def weights(run_dir: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = checkpoint.read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
    return state


def logged(run_dir: Path, name: str) -> list[float]:
    """What TensorBoard shows of a figure, point by point."""
    return [value for _, value in points(run_dir)[name]]


# Denominators, and what a step begins with


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_micro_batches_of_any_size_are_the_same_run(improve: Any, tmp_path: Path, kind: str) -> None:
    """Faults 9 and 10: a mean of the micro-batches' means, where answers differ much in length."""
    found = []
    for size in (1, 2, 8):
        run_dir = tmp_path / str(size)
        improve(run_dir, *KINDS[kind], *SOME, f"data.micro_batch_size={size}")
        found.append([curve(run_dir), curve(run_dir, "grad_norm"), curve(run_dir, "train/reward")])
        first = weights(tmp_path / "1")
        for name, tensor in weights(run_dir).items():
            torch.testing.assert_close(tensor, first[name], atol=2e-4, rtol=0, msg=f"{name} at {size}")
    assert len(found[0][0]) == 4
    for other in found[1:]:
        for theirs, ours in zip(other, found[0], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5)
    assert len(set(curve(run_dir, "train/answer_tokens"))) > 1


@pytest.mark.slow
def test_two_processes_draw_and_learn_what_one_does(
    torchrun: Any,  # noqa: F811
    improve: Any,
    base: Path,
    chats: Path,  # noqa: F811
    cache_dir: Path,
    tmp_path: Path,
) -> None:
    """Faults 9 and 10, and the answers: each process draws its share of the same numbers."""
    own = ("data=chat", f"data.path={chats}", "model.block_size=47", "tokenizer=pretrained", f"init_from={base}")
    both = ("model=gpt800k", *TINY, *own, f"data.cache_dir='{cache_dir}'", "trainer=ddp")
    extra = {"grpo": (*SOME, "data.micro_batch_size=2", "reward.shuffle=true"), "ppo": SOME}
    for kind, more in extra.items():
        improve(tmp_path / f"{kind} of one", *KINDS[kind], *more)
    code, _, stderr = torchrun(
        *([0, *both, *KINDS[kind], *more, f"hydra.run.dir={kind}"] for kind, more in extra.items())
    )
    assert code == 0, stderr
    for kind in extra:
        one, two = tmp_path / f"{kind} of one", tmp_path / kind
        for key in ("train/loss", "grad_norm", "train/reward", "train/answer_tokens", "val/reward", "val/kl"):
            assert curve(two, key) == pytest.approx(curve(one, key), abs=1e-5), f"{key} of {kind}"
        for name, tensor in weights(two).items():
            torch.testing.assert_close(tensor, weights(one)[name], atol=2e-4, rtol=0, msg=name)
        assert (one / "samples.txt").read_text() == (two / "samples.txt").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_begins_as_its_reference(improve: Any, tmp_path: Path, kind: str) -> None:
    """Fault 16: dropout, of which the model of init_from had two kinds; and fault 14: old log-probabilities are those
    of before the first update."""
    improve(tmp_path, *KINDS[kind])
    assert curve(tmp_path, "val/kl")[0] == 0.0 < curve(tmp_path, "val/kl")[-1]
    shown = points(tmp_path)
    if "task.kl_coef=0.1" in KINDS[kind]:
        assert logged(tmp_path, "train/kl")[0] == 0.0
    if "ppo" in kind:
        assert logged(tmp_path, "train/kl_of_answer")[0] == 0.0
    assert max(logged(tmp_path, "train/sampler_gap")) < 1e-5
    ratios = logged(tmp_path, "train/abs_log_ratio")
    every = 2 if "2 updates" in kind or "ppo" in kind else 1
    assert [ratio == 0.0 for ratio in ratios] == [step % every == 0 for step in range(4)]
    assert {"train/reward", "train/entropy", "train/clipped", "train/stop_rate"} <= shown.keys()


def test_answers_at_another_temperature_have_its_log_probabilities(improve: Any, tmp_path: Path) -> None:
    """Fault 12."""
    improve(tmp_path, *GRPO, "task.temperature=0.7", "trainer.max_steps=2")
    assert max(logged(tmp_path, "train/sampler_gap")) < 1e-5


def test_a_constant_reward_changes_nothing(improve: Any, base: Path, tmp_path: Path) -> None:
    """Fault 11: not one bit, without weight decay."""
    same = ("reward.name=regex", "reward.argument='^'", "reward.unended=null", "optim.weight_decay=0")
    improve(tmp_path, *GRPO, *same, "optim.lr=0.1")
    assert curve(tmp_path, "train/reward") == [1.0] * 4
    assert curve(tmp_path, "grad_norm") == [0.0] * 4
    before = weights(base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items())


def test_other_micro_batches_and_updates_answer_with_the_same_numbers(improve: Any, tmp_path: Path) -> None:
    """Answers are a function of (seed, step, prompt, sample), and of the weights."""
    rewards = []
    for name, more in {"one": (), "small": ("data.micro_batch_size=2",), "seed": ("seed=7",)}.items():
        improve(tmp_path / name, *GRPO, "trainer.max_steps=2", *more)
        rewards.append((curve(tmp_path / name, "train/reward"), curve(tmp_path / name, "train/answer_tokens")))
    assert rewards[0] == rewards[1] != rewards[2]


# Stopped and resumed


@pytest.mark.parametrize(
    ("kind", "batch_idx", "number"),
    [
        ("grpo, 2 updates", 4, signal.SIGINT),
        ("grpo with adapters", 4, signal.SIGTERM),
        ("ppo", 1, signal.SIGTERM),
        ("ppo", 6, signal.SIGINT),
        ("ppo with adapters", 4, signal.SIGTERM),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    improve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, batch_idx: int, number: int
) -> None:
    """Also in the middle of two updates, of which only the second is followed by a checkpoint."""
    steps = ("trainer.max_steps=6", "trainer.val_every=6", "data.micro_batch_size=4", "trainer.diagnose_every=2")
    steps += ("trainer.keep_checkpoints=1",)
    improve(tmp_path / "whole", *KINDS[kind], *steps)
    with monkeypatch.context() as patched:
        interrupt(patched, Kill(batch_idx, number))
        with pytest.raises(SystemExit) as stopped:
            improve(tmp_path / "stopped", *KINDS[kind], *steps)
    assert stopped.value.code == 128 + number
    every = 2 if "2 updates" in kind or "ppo" in kind else 1
    step = checkpoint.read_checkpoint(tmp_path / "stopped" / "checkpoints" / "last.ckpt")["global_step"]
    assert step == -(-(batch_idx // 2 + 1) // every) * every
    torch.manual_seed(999)  # what the process did before must not matter
    improve(tmp_path / "stopped", *KINDS[kind], *steps, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["grpo, 2 updates", "ppo"])
@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(
    improve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class PowerCut(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                raise RuntimeError("the power is out")

    more = ("trainer.max_steps=6", "trainer.val_every=6", "trainer.checkpoint_every=2", "trainer.ema=0.9")
    more += ("trainer.keep_checkpoints=1",)
    improve(tmp_path / "whole", *KINDS[kind], *more)
    with monkeypatch.context() as patched:
        interrupt(patched, PowerCut())
        with pytest.raises(RuntimeError, match="power"):
            improve(tmp_path / "stopped", *KINDS[kind], *more)
    improve(tmp_path / "stopped", *KINDS[kind], *more, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_reference_that_is_missing_or_has_changed_is_said(
    improve: Any, base: Path, grpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, run_dir = tmp_path / "begin", tmp_path / "run"
    shutil.copytree(base, begin)
    improve(run_dir, *GRPO, begin=begin)
    on = (*GRPO, "trainer.max_steps=6")
    begin.rename(tmp_path / "elsewhere")
    with pytest.raises(
        UserError, match=r"the model that its policy is compared to is missing: .*begin .*; put it back there"
    ):
        improve(run_dir, *on, begin=begin, resume=True)
    shutil.copytree(grpo, begin)
    with pytest.raises(
        UserError, match=r"the model that its policy is compared to has changed: .*begin .*put the model back"
    ):
        improve(run_dir, *on, begin=begin, resume=True)
    shutil.rmtree(begin)
    (tmp_path / "elsewhere").rename(begin)
    kl = curve(run_dir, "val/kl")[-1]
    assert kl > 0
    improve(run_dir, *on, begin=begin, resume=True)
    assert curve(run_dir, "val/kl")[-1] > kl  # from the first model, and not from the checkpoint


# What is learned


@pytest.fixture(scope="session")
def learn(improve: Any) -> Any:
    """learn(run_dir, *overrides) trains for long enough; returns the reward of sampled answers before and after."""

    def learn(run_dir: Path, *overrides: str) -> tuple[float, float]:
        long = ("data.batch_size=24", "task.samples=16", "trainer.val_every=30", "trainer.max_steps=30")
        rule = ("reward.name=regex", "reward.argument='^b'", "trainer.log_every=10", "data.val_fraction=0.3")
        improve(run_dir, *overrides, *long, *rule, "optim.lr=3e-3")
        rewards = curve(run_dir, "val/reward")
        return rewards[0], rewards[-1]

    return learn


def test_grpo_learns_what_is_rewarded(learn: Any, tmp_path: Path) -> None:
    before, after = learn(tmp_path, *GRPO)
    assert after > before + 0.25
    assert read_json(tmp_path / "summary.json")["test/win_rate"] > 0.55


def test_nothing_is_learned_from_rewards_that_were_dealt_out(learn: Any, tmp_path: Path) -> None:
    before, after = learn(tmp_path, *GRPO, "reward.shuffle=true")
    assert after < before + 0.1


def test_ppo_learns_what_is_rewarded_and_what_to_expect(learn: Any, tmp_path: Path) -> None:
    before, after = learn(tmp_path, *PPO, "task.value_coef=1", "task.kl_reward=0.01")
    assert after > before + 0.2
    losses = logged(tmp_path, "train/value_loss")
    assert losses[-1] < losses[0]


# Rewards


@pytest.fixture(scope="session")
def judge(improve: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of task=reward, which likes the right colours."""
    folder = tmp_path_factory.mktemp("judge")
    colours = list(COLOURS.items())
    pairs = [
        {"prompt": f"what is {thing} like", "chosen": colour, "rejected": colours[(i + 1 + j) % len(colours)][1]}
        for j in range(4)
        for i, (thing, colour) in enumerate(colours)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs))
    improve(folder / "run", "task=reward", f"data.path={folder / 'pairs.jsonl'}", "data.val_fraction=0.2")
    return folder / "run"


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_a_reward_model_is_learned_from_with_the_gold_reward_beside(
    improve: Any, judge: Path, tmp_path: Path, kind: str
) -> None:
    summary = improve(tmp_path, *KINDS[kind], f"reward.model={judge}", "task.answer_tokens=18", "task.samples=4")
    assert {float(reward).is_integer() for reward in curve(tmp_path, "val/judged_reward")} == {False}
    for part in ("val", "test"):
        penalty = (0.1 if kind == "grpo" else 0.05) * summary[f"{part}/kl"]
        assert summary[f"{part}/loss"] == pytest.approx(penalty - summary[f"{part}/judged_reward"])
        assert 0 <= summary[f"{part}/reward"] <= 1
    assert logged(tmp_path, "train/judged_reward") != logged(tmp_path, "train/reward")
    assert [n for n, _, _ in summary["best_of_n"]] == [1, 2, 4]


def test_an_answer_without_an_end_earns_what_was_asked_for(improve: Any, tmp_path: Path) -> None:
    cut = ("task.answer_tokens=2", "reward.name=regex", "reward.argument=.", "trainer.max_steps=2")
    found = []
    for unended in (0.0, -3.0, "null"):
        run_dir = tmp_path / str(unended)
        improve(run_dir, *GRPO, *cut, f"reward.unended={unended}")
        assert curve(run_dir, "train/stop_rate")[0] < 0.5
        found.append(curve(run_dir, "train/reward")[0])
    assert found[1] < found[0] < found[2]


def test_a_function_in_this_folder_is_the_reward(improve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "policy_rules.py").write_text("def length(answers):\n    return [len(a.text) for a in answers]\n")
    few = ("trainer.max_steps=2", "reward.unended=null", "reward.name=function")
    improve(tmp_path / "run", *GRPO, *few, "reward.argument=policy_rules:length")
    tokens, rates = (curve(tmp_path / "run", f"train/{name}") for name in ("answer_tokens", "stop_rate"))
    expected = [count - rate for count, rate in zip(tokens, rates, strict=True)]  # a character is a token
    assert curve(tmp_path / "run", "train/reward") == pytest.approx(expected)


# What one sees


def test_samples_show_what_an_answer_earns(improve: Any, tmp_path: Path) -> None:
    improve(tmp_path, *GRPO, "trainer.max_steps=2", "reward.name=regex", "reward.argument=e")
    text = (tmp_path / "samples.txt").read_text().split("--- step 0\n")[1].split("--- step 2\n")[0].splitlines()
    asked = [i for i, line in enumerate(text) if line.startswith("> ")]
    assert len(asked) == 5
    for i in asked:
        earned = float("e" in text[i + 1] and not text[i + 1].endswith(" ..."))
        assert text[i + 2] == f"(reward {earned:.3g})"
    ((_, (first,)), *_) = points(tmp_path)["sample/text_summary"]
    lines = first.decode().splitlines()
    assert lines[0] == "| prompt | answer | reward | wanted |"
    assert lines[2].startswith(f"| {text[asked[0]][2:]} | {text[asked[0] + 1]} |")
    assert len(lines) == 7


def test_a_policy_is_opened_as_a_language_model(ppo: Path, command: Any) -> None:
    result: Result = command("generate", str(ppo), "what is coal like", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    result = command("export", str(ppo), "exported")
    assert result.returncode == 0, result.stderr
    ours, theirs = load_model(ppo)[0], load_model("exported")[0]
    idx = torch.arange(20)[None]
    torch.testing.assert_close(ours.eval()(idx), theirs.eval()(idx), atol=1e-5, rtol=0)


# Together with other switches


@pytest.mark.parametrize(
    "more",
    [
        ("trainer.nonfinite=skip", "trainer.ema=0.9", "model.gradient_checkpointing=true"),
        ("data.overfit_batches=1", "trainer.diagnose_every=2", "precision=bf16", "data.micro_batch_size=2"),
        ("task.train=last_block", "task.kl_coef=0.1"),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "ppo"])
@pytest.mark.slow
def test_these_go_together(improve: Any, tmp_path: Path, kind: str, more: tuple[str, ...]) -> None:
    summary = improve(tmp_path, *KINDS[kind], *more)
    assert summary["steps"] == 4
    assert curve(tmp_path, "val/kl")[0] == 0.0
    assert logged(tmp_path, "train/abs_log_ratio")[0] == 0.0


def test_the_same_prompts_come_again(improve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptlab.training.objectives.policy import Policy

    asked = []
    real = Policy._draw

    def draw(self: Policy, model: Any, batch: Any, trainer: Any) -> Any:
        asked.append(batch.numbers)
        return real(self, model, batch, trainer)

    monkeypatch.setattr(Policy, "_draw", draw)
    improve(tmp_path, *PPO, "data.overfit_batches=1")
    assert len(asked) == 2
    assert asked[0] == asked[1]


@pytest.mark.parametrize("kind", ["grpo", "grpo, 2 updates", "ppo"])
def test_a_step_that_is_no_number_ends_the_run_and_is_explained(
    improve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from gptlab.training.objectives import policy

    real, calls = policy.policy_loss, []

    def bad(*args: Any, **options: Any) -> Any:
        calls.append(args)
        loss = real(*args, **options)
        return loss if len(calls) == 1 else policy.Loss(loss.total * float("nan"), loss.weight, loss.figures)

    monkeypatch.setattr(policy, "policy_loss", bad)
    words = r"the gradients of step 2 are not finite .*; the first layer that went bad: the loss"
    with pytest.raises(UserError, match=words):
        improve(tmp_path, *KINDS[kind], "trainer.log_every=4", "trainer.val_every=4")
    assert (tmp_path / "nonfinite_step_2.ckpt").exists()
    calls.clear()
    summary = improve(tmp_path / "skipped", *KINDS[kind], "trainer.nonfinite=skip")
    assert summary["skipped_steps"] == 3


# What is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=grpo", "task.group=1"], "task.group=1: an answer is compared to the others to its prompt; at least 2"),
        (["task=ppo", "task.group=0"], "task.group=0: must be at least 1"),
        (["task=grpo", "task.updates=0"], "task.updates=0: must be at least 1"),
        (["task=grpo", "task.updates=2"], "task.updates=2 with task.clip=null: only the first step on an answer is"),
        (["task=grpo", "task.clip_high=0.3"], "task.clip_high=0.3: has no effect with task.clip=null; set that"),
        (["task=grpo", "task.clip=0"], "task.clip=0.0: must be above 0, or null for no clipping"),
        (["task=ppo", "task.value_clip=-1"], "task.value_clip=-1.0: must be above 0, or null for no clipping"),
        (["task=grpo", "task.temperature=0"], "task.temperature=0.0: must be above 0"),
        (["task=grpo", "task.temperature=inf"], "task.temperature=inf: must be above 0 and finite"),
        (["task=grpo", "task.temperature=nan"], "task.temperature=nan: must be above 0"),
        (["task=grpo", "task.clip=inf"], "task.clip=inf: must be above 0 and finite, or null for no clipping"),
        (["task=grpo", "task.kl_coef=inf"], "task.kl_coef=inf: must be at least 0 and finite"),
        (["task=ppo", "task.kl_reward=inf"], "task.kl_reward=inf: must be at least 0 and finite"),
        (["task=grpo", "reward.unended=nan"], "reward.unended=nan: must be a finite number, or null for what it would"),
        (["task=grpo", "reward.unended=inf"], "reward.unended=inf: must be a finite number, or null"),
        (["task=grpo", "reward.unended=-inf"], "reward.unended=-inf: must be a finite number, or null"),
        (["task=grpo", "task.kl=k4"], "task.kl=k4: must be one of exact, k1, k2, k3, k3_weighted"),
        (["task=grpo", "task.kl_coef=-1"], "task.kl_coef=-1.0: must be at least 0"),
        (["task=grpo", "task.normalise=mean"], "task.normalise=mean: must be one of token, sequence, constant"),
        (["task=grpo", "task.baseline=median"], "task.baseline=median: must be one of mean, mean_std, leave_one_out"),
        (["task=grpo", "task.ratio=word"], "task.ratio=word: must be one of token, sequence"),
        (["task=ppo", "task.gamma=1.5"], "task.gamma=1.5: must be from 0 to 1"),
        (["task=ppo", "task.lam=-0.1"], "task.lam=-0.1: must be from 0 to 1"),
        (["task=ppo", "task.kl_reward=-1"], "task.kl_reward=-1.0: must be at least 0"),
        (["task=ppo", "task.value_coef=-1"], "task.value_coef=-1.0: must be at least 0"),
        (["task=grpo", "init_from=null"], "task=grpo: improves a model that answers already; add init_from=..."),
        (["task=grpo", "task.samples=0"], "task.samples=0 with task=grpo: val/loss is minus the reward of sampled"),
        (["task=grpo", "task.check=0"], "task.check=0 with task=grpo: val/loss is minus the reward of sampled"),
        (["task=grpo", "task.loss_on=all"], "task.loss_on=all with task=grpo: it learns from the rewards of its own"),
        (["task=ppo", "trainer.max_steps=6"], "trainer.max_steps=6: must be a multiple of task.updates=4"),
        (
            ["task=ppo", "trainer.val_every=3"],
            "trainer.val_every=3: must be a multiple of task.updates=4, the steps on",
        ),
        (
            ["task=ppo", "trainer.checkpoint_every=5"],
            "trainer.checkpoint_every=5: must be a multiple of task.updates=4",
        ),
        (
            ["task=grpo", "data=continuations"],
            "reward.name=exact: the prompts of data=continuations have no right answ",
        ),
        (["data=continuations", "task.samples=2"], "reward.name=exact: the prompts of data=continuations have no ri"),
        (
            ["task=dpo", "data=preferences", "data.problems.reward=rhyme", "data.problems.argument=null"],
            "reward.name=exact: the prompts of data=preferences have no right answer; choose another, e.g. reward.name",
        ),
        (["task=reward", "task.samples=2"], "task.samples=2 with task=reward: it does not answer; leave it 0"),
        (["task=grpo", "data.batch_size=12"], "data.batch_size=12: counts answers, task.group=8 to each prompt, and"),
        (["task=grpo", "compile=inductor"], "compile=inductor with task=grpo: its rows have many lengths; use"),
        (["task=grpo", "trainer=fsdp"], "trainer.strategy=fsdp with task=grpo: is for task=pretrain and task=sft"),
        (["task=grpo", "lora.rank=2", "lora.dropout=0.1"], "lora.dropout=0.1 with task=grpo: the policy must begin as"),
        (["task=grpo", "model=pretrained", "model.dropout=0.1"], "model.dropout=0.1 with task=grpo: the policy must"),
        (["task=grpo", "reward.name=regex"], "reward.name=regex: reward=regex: needs a regular expression"),
        (["task=grpo", "reward.name=regex", "reward.argument='('"], "'(' is no regular expression"),
        (["task=grpo", "reward.name=right"], "reward.name=right: "),
        (["task=sft", "reward.shuffle=true"], "reward.shuffle=true with task=sft: no reward is learned from; leave it"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    compose: Any, overrides: list[str], words: str
) -> None:
    common = ["data=chat", "init_from=there", "data.batch_size=16", "trainer.max_steps=8", "trainer.val_every=4"]
    with pytest.raises(UserError) as refused:
        compose(*common, *overrides)
    assert words in str(refused.value)


def test_a_run_of_another_kind_is_no_reward_model(
    improve: Any, judge: Path, base: Path, ppo: Path, trained: Path, tmp_path: Path
) -> None:
    for model, words in {
        tmp_path / "none": r"none",
        base: r"sft.*head",
        ppo: r"has a head for value, and must be a run of task=reward",
    }.items():
        with pytest.raises(UserError, match=words):
            improve(tmp_path / "run", *GRPO, f"reward.model={model}")
    with pytest.raises(UserError, match=r"reads other tokens .* than the policy .*; train both from one model"):
        improve(tmp_path / "run", *GRPO, f"reward.model={judge}", "model.block_size=17", begin=trained)


def test_a_reward_model_reads_the_policys_chat_format(judge: Path, base: Path) -> None:
    """One that has learned from another template would judge what it has never seen."""
    opened = judges.open_judge(str(judge))
    assert judges.reward_model(str(judge), ChatFormat(opened.tokenizer), 32).config == opened.model.config
    other = ChatTemplate(opened.tokenizer, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(UserError, match=r"reward.model=.* reads another chat format than the policy's, the chat temp"):
        judges.reward_model(str(judge), other, 32)
    with pytest.raises(UserError, match=r"reward.model=.*; it must be a run of task=classify or task=reward"):
        judges.reward_model(str(base), other, 32)


def test_prompts_must_leave_room_for_an_answer(improve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault 3: longer than the row; fault 5: an answer that just fits is not cut, nor its prompt."""
    with pytest.raises(UserError, match=r"task.answer_tokens=46: no prompt of the train part leaves room for such"):
        improve(tmp_path / "none", *GRPO, "task.answer_tokens=46", "data.val_fraction=0.2")
    # "please, what is a lemon like" has 28 tokens, and with <begin>, <user>, <end> and <assistant> 32
    longest = ("task.answer_tokens=16", "trainer.max_steps=2")
    improve(tmp_path / "fits", *GRPO, *longest, "task.too_long=refuse")
    assert "cut to the row" not in caplog.text
    with pytest.raises(UserError, match=r"has room for 31 tokens, and the prompt has 32; .* task.too_long=cut"):
        improve(tmp_path / "not", *GRPO, "task.answer_tokens=17", "task.too_long=refuse")
    improve(tmp_path / "cut", *GRPO, "task.answer_tokens=17", "trainer.max_steps=2")
    assert "cut to the row" in caplog.text
