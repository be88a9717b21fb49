"""Learning from pairs of answers, as a policy (DPO) and as a judge (a reward model): what counts, what comes back."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gptlab.alignment.preferences import sample_preferences
from gptlab.alignment.rewards import bayes_accuracy
from gptlab.data.chat.chat_format import END, ChatFormat
from gptlab.data.chat.conversations import Message, Preference, read_examples
from gptlab.formats import checkpoint, description
from gptlab.formats.open_model import load_headed, load_model
from gptlab.models.gpt import GPT
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training import pair_datamodule, placement
from gptlab.training.fit import fit
from gptlab.training.objectives.pairs import DPO
from gptlab.training.run import Run, assemble
from tests.conftest import Result
from tests.training.runs_compared import assert_same_run, points, rows
from tests.training.test_resume import Kill, goes_on, interrupt

T = 47
SHAPE = ("data=chat", f"model.block_size={T}", "data.val_fraction=0.25", "task.answer_tokens=9")
SHORT = ("trainer=cpu", "data.batch_size=8", "trainer.max_steps=5", "trainer.val_every=2", "trainer.log_every=1")
SHORT += ("optim.lr=1e-2", "schedule.warmup_steps=2", "task.answer_tokens=9", "data.val_fraction=0.25", "task.check=3")
FROM = ("model=pretrained", "tokenizer=pretrained")
LORA = ("lora.rank=2", "lora.targets=[q,v,c_fc]")


def said(count: int) -> list[dict[str, Any]]:
    """Pairs of several lengths, whose answers begin alike."""
    return [
        {
            "prompt": f"{'please, ' * (i % 2)}say {i}",
            "chosen": f"yes {'and yes ' * (i % 3)}sir",
            "rejected": f"yes {'oh no' * (i % 2)}",
        }
        for i in range(count)
    ]


def written(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 pairs, of which the last 12 are held out."""
    return written(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", said(48))


@pytest.fixture(scope="session")
def answering(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """answering("llama") is a tiny run of task=sft of that architecture, with dropout; each is made once."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("sft")
    words = ("yes", "no", "sir", "and", "oh")
    chats = [{"prompt": each["prompt"], "completion": words[i % 5]} for i, each in enumerate(said(48))]
    written(folder / "chats.jsonl", chats)

    def answering(arch: str = "gpt2") -> Path:
        if arch not in made:
            made[arch] = folder / arch
            words = (f"arch={arch}", "model.n_embd=36", "model.dropout=0.1", "optim.lr=1e-2")
            run(
                made[arch],
                *SHAPE,
                *words,
                f"data.path={folder / 'chats.jsonl'}",
                "trainer.max_steps=60",
                "trainer.val_every=60",
            )
        return made[arch]

    return answering


@pytest.fixture(scope="session")
def settings(compose: Any, answering: Any, pairs: Path) -> Any:
    """settings("task=dpo", ...) -> Settings of a short run on `pairs`."""

    def settings(*overrides: str, base: Path | None = None) -> Any:
        places = (f"init_from={base or answering()}", f"data.path={pairs}")
        return compose("data=chat", *FROM, *SHORT, *places, *overrides)

    return settings


@pytest.fixture(scope="session")
def tune(settings: Any) -> Any:
    """tune(run_dir, "task=dpo", ...) trains on `pairs`, and returns the summary."""

    def tune(run_dir: Path, *overrides: str, base: Path | None = None, resume: bool = False) -> dict[str, Any]:
        return fit(settings(*overrides, base=base), run_dir, resume)

    return tune


def assembled(settings: Any) -> Run:
    return assemble(settings, placement.decide(settings))


def logprob(model: Any, tokenizer: Any, prompt: str, answer: str) -> tuple[float, int]:
    """The log-probability of an answer and its end, in float64 and without batches; and how many tokens they are."""
    before = ChatFormat(tokenizer).prompt([Message("user", prompt)]).tolist()
    after = [*tokenizer.encode(answer).tolist(), tokenizer.special_tokens[END]]
    with torch.no_grad():
        logits = model.double()(torch.tensor([before + after]))[0, len(before) - 1 : -1]
    return -F.cross_entropy(logits, torch.tensor(after), reduction="sum").item(), len(after)


def last(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


# What DPO minimises


@pytest.mark.parametrize("options", [(), LORA, ("task.variant=sigmoid_norm",), ("task.label_smoothing=0.1",)])
@pytest.mark.parametrize("attn", [False, True])
def test_the_first_log_ratio_is_exactly_0(
    tune: Any, answering: Any, run: Any, tmp_path: Path, options: tuple[str, ...], attn: bool
) -> None:
    """Faults 16 and 22: dropout of init_from's model in policy or reference, and adapters that begin at random."""
    base = answering()
    assert load_model(base)[0].config.dropout == 0.1  # type: ignore[union-attr]
    if attn:
        base = tmp_path / "base"
        shutil.copytree(answering(), base)
        content = checkpoint.read_checkpoint(last(base))
        content[description.KEY]["model"]["attn_dropout"] = 0.2
        for name in ("best", "last"):
            checkpoint.save_checkpoint(content, base / "checkpoints" / f"{name}.ckpt")
    tune(tmp_path / "run", "task=dpo", *options, "trainer.max_steps=1", base=base)
    first = rows(tmp_path / "run")
    assert float(first[0]["val/loss"]) == pytest.approx(math.log(2), abs=1e-7)
    assert float(first[0]["val/margin"]) == float(first[0]["val/kl"]) == 0.0
    assert float(first[0]["val/chosen_reward"]) == float(first[0]["val/rejected_reward"]) == 0.0
    assert float(first[1]["train/loss"]) == pytest.approx(math.log(2), abs=1e-7)
    assert float(first[1]["train/margin"]) == 0.0


def by_hand(run_dir: Path, base: Path, lines: list[dict[str, Any]], variant: str, smoothing: float) -> dict[str, float]:
    """What is measured of a policy, from one answer at a time."""
    policy, tokenizer, _ = load_model(last(run_dir))
    reference, beta, found = load_model(base)[0], 0.3, []
    for each in lines:
        scores, logprobs = [], []
        for answer in (each["chosen"], each["rejected"]):
            now, count = logprob(policy, tokenizer, each["prompt"], answer)
            before, _ = logprob(reference, tokenizer, each["prompt"], answer)
            scores.append((now - before) / (1 if variant == "sigmoid" else count))
            logprobs.append(now)
        d = scores[0] - scores[1]
        f = {
            e: (e * d - 1 / (2 * beta)) ** 2 if variant == "ipo" else math.log1p(math.exp(-beta * e * d))
            for e in (1, -1)
        }
        loss = (1 - smoothing) * f[1] + smoothing * f[-1]
        found.append([loss, *logprobs, beta * scores[0], beta * scores[1], beta * d, d > 0])
    names = ("loss", "chosen_logprob", "rejected_logprob", "chosen_reward", "rejected_reward", "margin", "accuracy")
    return {
        f"val/{name}": sum(column) / len(lines) for name, column in zip(names, zip(*found, strict=True), strict=True)
    }


@pytest.mark.parametrize(
    ("variant", "smoothing", "options"),
    [("sigmoid", 0.0, ()), ("sigmoid", 0.1, LORA), ("ipo", 0.0, ()), ("sigmoid_norm", 0.2, ())],
)
def test_what_is_measured_is_the_sum_over_whole_answers(
    tune: Any, answering: Any, tmp_path: Path, variant: str, smoothing: float, options: tuple[str, ...]
) -> None:
    """Faults 1, 2, 8, 17 and 18: the first token, the end and what both answers begin with count; sums, and no means;
    the log-probabilities are logged apart. The last batch, of 12 pairs by 5, is filled up.
    """
    words = (f"task.variant={variant}", f"task.label_smoothing={smoothing}", "task.beta=0.3", "data.val_batch_size=5")
    summary = tune(tmp_path, "task=dpo", *words, *options)
    wanted = by_hand(tmp_path, answering(), said(48)[36:], variant, smoothing)
    assert {name: summary[name] for name in wanted} == pytest.approx(wanted, abs=2e-5)
    assert wanted["val/margin"] != 0
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert len(set(header)) == len(header)
    assert {f"{part}/{which}_logprob" for part in ("train", "val") for which in ("chosen", "rejected")} < {*header}


@pytest.mark.parametrize("task", ["dpo", "reward"])
def test_micro_batches_of_any_size_are_the_same_run(tune: Any, tmp_path: Path, task: str) -> None:
    """Fault 9: the mean of the micro-batches' means is that of the step's pairs, dropout and widths included."""
    curves = []
    for size in (1, 2, 8):
        words = (f"task={task}", f"data.micro_batch_size={size}", *([] if task == "dpo" else ["model.dropout=0.2"]))
        tune(tmp_path / str(size), *words, "task.check=0")
        names = ("loss", "grad_norm", "margin", "accuracy")
        curves.append([value for name in names for value in column(tmp_path / str(size), name)])
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    assert curves[2] == pytest.approx(curves[0], abs=1e-4)


def column(run_dir: Path, name: str) -> list[float]:
    key = name if name == "grad_norm" else f"train/{name}"
    return [float(row[key]) for row in rows(run_dir) if row[key]]


@pytest.mark.slow
def test_two_processes_are_the_same_run(tune: Any, shell: Any, answering: Any, pairs: Path, tmp_path: Path) -> None:
    base = answering("modern")  # whose head is not its embedding: without gradients in a reward model
    runs = {"dpo": ("task=dpo",), "reward": ("task=reward", *LORA)}
    given = ("data=chat", *SHORT[1:], "trainer=ddp", f"init_from={base}", f"data.path={pairs}", "data.val_batch_size=5")
    lines = [[0, *given, *words, f"name={name}"] for name, words in runs.items()]
    (tmp_path / "runs.json").write_text(json.dumps(lines))
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = shell(*command, "-m", "tests.distributed.several_runs", "runs.json")
    for name, words in runs.items():
        tune(tmp_path / name, *words, "data.val_batch_size=5", base=base)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    for name in runs:
        (together,) = (tmp_path / "outputs" / name).iterdir()
        one, two = rows(tmp_path / name), rows(together)
        assert len(one) == len(two) > 5
        for a, b in zip(one, two, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                assert float(a[key] or 0) == pytest.approx(float(b[key] or 0), abs=2e-4), key


@pytest.mark.skipif(sys.version_info < (3, 11), reason="TRL has nothing for Python 3.10")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_a_steps_loss_and_gradients_are_trls(
    command: Any, settings: Any, tune: Any, answering: Any, pairs: Path, tmp_path: Path, arch: str
) -> None:
    """TRL reads the same rows, by the template of our export, and asks transformers for the model."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, policy = answering(arch), tmp_path / "policy"
    tune(policy, "task=dpo", "trainer.max_steps=2", base=base)
    for name, source in (("reference", base), ("trained", last(policy))):
        result: Result = command("export", str(source), str(tmp_path / name))
        assert result.returncode == 0, result.stderr
    objective = assembled(settings("task=dpo", "task.beta=0.3", base=base)).module.objective
    run = assembled(settings("task=dpo"))
    model, theirs = load_model(last(policy))[0], AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "reference")
    assert isinstance(objective, DPO)
    assert isinstance(model, GPT)
    chosen = [json.loads(line) for line in pairs.read_text().splitlines()[:6]]
    messages = [
        {
            key: [{"role": "user" if key == "prompt" else "assistant", "content": each[key]}]
            for key in ("prompt", "chosen", "rejected")
        }
        for each in chosen
    ]
    options: dict[str, Any] = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False}
    trainer = trl.DPOTrainer(
        theirs,
        reference,
        trl.DPOConfig(**options, beta=0.3, disable_dropout=True),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "trained"),
        train_dataset=Dataset.from_list(messages),
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    batch = run.data.prepared.rows["train"].batch(range(6), range(6), torch.zeros(6), torch.device("cpu"))
    found = objective.of_pairs(model, batch)
    found.mean.backward()
    assert found.mean.item() == pytest.approx(loss.item(), abs=1e-5)
    known = model.config.vocab_size  # an export has rows for a padding token, and GPT-2 has biases
    sums = []
    for each, table in ((model, model.wte.weight), (theirs, theirs.get_input_embeddings().weight)):
        matrices = [p.grad for p in each.parameters() if p.dim() == 2 and p is not table]
        sums.append(sum(float(grad.square().sum()) for grad in (*matrices, table.grad[:known])))
    torch.testing.assert_close(
        model.wte.weight.grad, theirs.get_input_embeddings().weight.grad[:known], atol=1e-5, rtol=1e-4
    )
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    assert sums[0] > 1e-3
    assert abs(loss.item() - math.log(2)) > 1e-3  # a reference that differs
    total, weight = found.figures["chosen_logprob"]
    assert float(total / weight) == pytest.approx(trainer._metrics["eval"]["logps/chosen"][0], abs=1e-4)


# A reward model


def judged(run_dir: Path, lines: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The rewards of chosen and rejected, from one text at a time."""
    model, tokenizer, _ = load_headed(last(run_dir))
    found = []
    for each in lines:
        before = ChatFormat(tokenizer).prompt([Message("user", each["prompt"])]).tolist()
        ids = [
            [*before, *tokenizer.encode(each[key]).tolist(), tokenizer.special_tokens[END]]
            for key in ("chosen", "rejected")
        ]
        with torch.no_grad():
            found.append([float(model.double()(torch.tensor([i]), torch.tensor([len(i)]))) for i in ids])
    return found


@pytest.mark.parametrize("options", [(), LORA, ("task.train=head",), ("task.train=last_block",)])
def test_a_reward_is_a_scalar_on_the_end_token(tune: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Fault 2 for a judge; and what fills up the last batch counts nothing."""
    summary = tune(tmp_path, "task=reward", "task.centring=0.1", "data.val_batch_size=5", *options)
    found = judged(tmp_path, said(48)[36:])
    margins = [a - b for a, b in found]
    centred = [0.1 * (a + b) ** 2 for a, b in found]
    loss = sum(math.log1p(math.exp(-m)) + c for m, c in zip(margins, centred, strict=True)) / 12
    assert summary["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert summary["val/margin"] == pytest.approx(sum(margins) / 12, abs=1e-5)
    assert summary["val/accuracy"] == sum(m > 0 for m in margins) / 12
    assert summary["val/chosen_reward"] == pytest.approx(sum(a for a, _ in found) / 12, abs=1e-5)
    assert summary["val/chosen_reward"] != 0
    assert not (tmp_path / "samples.txt").exists()  # a judge writes no text
    if options[:1] in ((), ("task.train=head",)):
        tags = points(tmp_path)
        assert "sample" not in tags


def test_a_judge_reads_the_end_and_a_policy_predicts_it(settings: Any, tmp_path: Path) -> None:
    """Fault 5: a text of block_size + 1 ids fits where the last one is a target only."""
    room = 10  # ids of "say 0", its roles and its end
    for task, fits in (("dpo", T + 1), ("reward", T)):
        for length in (fits, fits + 1):
            line = {"prompt": "say 0", "chosen": "s" * (length - room), "rejected": "no"}
            path = written(tmp_path / "one.jsonl", [line] * 4)
            words = (f"task={task}", f"data.path={path}", "task.too_long=refuse")
            if length == fits:
                run = assembled(settings(*words))
                assert run.data.prepared.rows["train"].lengths.tolist() == [fits] * 3
                batch = run.data.prepared.rows["train"].batch([0], [0], None, torch.device("cpu"))
                assert run.module.objective.measure(run.module.model, batch).isfinite().all()
                continue
            with pytest.raises(
                UserError, match=rf"it has {length} tokens, and a row of model.block_size={T} holds {fits}"
            ):
                assembled(settings(*words))


def test_a_margin_is_what_the_rows_say(tune: Any, settings: Any, tmp_path: Path) -> None:
    lines = said(48)
    for i, each in enumerate(lines):
        each |= {"margin": i / 10} if i % 2 else {"gold_chosen": i / 7, "gold_rejected": 0.5}
    path = written(tmp_path / "margins.jsonl", lines)
    chosen = ("task=reward", f"data.path={path}")
    summary = tune(tmp_path / "run", *chosen, "task.margin=data")
    margins = [i / 10 if i % 2 else i / 7 - 0.5 for i in range(36, 48)]
    losses = [
        math.log1p(math.exp(m - a + b)) for (a, b), m in zip(judged(tmp_path / "run", lines[36:]), margins, strict=True)
    ]
    assert summary["val/loss"] == pytest.approx(sum(losses) / 12, abs=1e-5)
    without = tune(tmp_path / "without", *chosen)
    assert without["val/loss"] < summary["val/loss"] - 0.5
    del lines[40]["gold_chosen"], lines[40]["gold_rejected"]
    written(path, lines)
    words = r"margins.jsonl, line 41: it has no margin, which task.margin=data asks for: .* or use task.margin=none"
    with pytest.raises(UserError, match=words):
        assembled(settings(*chosen, "task.margin=data"))
    lines[40]["margin"] = "much"
    written(path, lines)
    with pytest.raises(UserError, match=r"line 41: margin is 'much', and must be a finite number"):
        assembled(settings(*chosen))


@pytest.mark.parametrize("task", ["dpo", "reward"])
def test_pairs_that_read_alike_are_left_out_of_every_part(
    settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str
) -> None:
    """Characters that the tokenizer of init_from lacks are left out, so that such answers differ in nothing."""
    lines = said(48)
    for i in (3, 5, 47):
        lines[i] |= {"chosen": "yes \u65e5", "rejected": "yes \u672c"}
    path = written(tmp_path / "pairs.jsonl", lines)
    run = assembled(settings(f"task={task}", f"data.path={path}"))
    assert {part: len(rows) for part, rows in run.data.prepared.rows.items()} == {"train": 34, "val": 11}
    assert "3 preferences: left out, since both answers are the same tokens\n" in caplog.text
    for i in range(36, 48):
        lines[i] |= {"chosen": "yes \u65e5", "rejected": "yes \u672c"}
    written(path, lines)
    words = (
        r"no preferences of the val part are left: 12 left out, since both answers are the same tokens; take a token"
    )
    with pytest.raises(UserError, match=words):
        assembled(settings(f"task={task}", f"data.path={path}"))


def test_margins_of_a_table_of_text_are_learned_from(tune: Any, tmp_path: Path) -> None:
    """As those of the same rows in JSON."""
    lines = [each | {"margin": i / 10} for i, each in enumerate(said(48))]
    path = written(tmp_path / "margins.jsonl", lines)
    table = tmp_path / "margins.csv"
    with table.open("w") as file:
        writer = csv.DictWriter(file, lines[0].keys())
        writer.writeheader()
        writer.writerows(lines)
    losses = [
        tune(tmp_path / each.suffix, "task=reward", "task.margin=data", "trainer.max_steps=1", f"data.path={each}")[
            "val/loss"
        ]
        for each in (path, table)
    ]
    assert losses[0] == losses[1]


def test_rankings_of_people_are_read_as_they_are(
    command: Any, tune: Any, answering: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"say {i}\n" for i in range(12)))
    said = iter("12" * 6)
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    words = (str(answering()), str(prompts), str(tmp_path / "ranked.jsonl"), "--max-new-tokens", "9")
    result: Result = command("rank", *words)
    assert result.returncode == 0, result.stderr
    ranked = read_examples([tmp_path / "ranked.jsonl"]).rows
    assert len(ranked) > 8
    assert isinstance(ranked[0], Preference)
    for task in ("reward", "dpo"):
        options = (
            f"task={task}",
            f"data.path={tmp_path / 'ranked.jsonl'}",
            "trainer.max_steps=12",
            "trainer.val_every=12",
        )
        tune(tmp_path / task, *options, "data.overfit_batches=1")
        assert column(tmp_path / task, "loss")[-1] < column(tmp_path / task, "loss")[0] - 0.05


# Pairs that the model gives itself

SAMPLED = ("data.problems.pairs=30", "data.problems.held_out_pairs=20", "data.problems.held_out=0.2")
SAMPLED += ("data.problems.characters=30", "data.problems.answer_tokens=6", "data.problems.noise=0.5")
GOLD = ("reward.name=without", "reward.argument=e")


@pytest.fixture
def preferences(compose: Any, answering: Any, tmp_path: Path) -> Any:
    """preferences("task=dpo", ...) -> Settings of data=preferences on lines of a play, with a cache of its own."""
    play = tmp_path / "play.txt"
    play.write_text("".join(f"say {i}\nyes sir\n" for i in range(200)))

    def preferences(*overrides: str, base: Path | None = None) -> Any:
        places = (f"data.path={play}", f"init_from={base or answering()}", f"data.cache_dir={tmp_path / 'cache'}")
        return compose("data=preferences", *FROM, *SHORT, *SAMPLED, *GOLD, *places, *overrides)

    return preferences


def cached(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets a tiny model's answers end by themselves, which it has not learned; counts the samplings."""
    calls: list[int] = []
    real = sample_preferences

    def sample(model: Any, *others: Any, **options: Any) -> Any:
        calls.append(options["pairs"])
        return real(model, *others, **options)

    monkeypatch.setattr(pair_datamodule, "sample_preferences", sample)
    return calls


def test_pairs_are_sampled_once_for_all_tasks_of_a_model(
    preferences: Any, answering: Any, ending: list[int], tmp_path: Path, command: Any
) -> None:
    summary = fit(preferences("task=reward"), tmp_path / "reward")
    assert ending == [30, 20]
    files = cached(tmp_path / "cache")
    assert sorted(Path(name).name for name in files) == ["held_out.jsonl", "train.jsonl"]
    gold = [each.gold for each in read_examples([tmp_path / "cache" / name for name in files if "held" in name]).rows]
    assert len(gold) > 4
    first = int(0.25 * len(gold))
    best = bayes_accuracy([a - b for a, b in gold[first:]], 0.5)
    assert summary["test/bayes_accuracy"] == pytest.approx(best)
    assert 0.5 <= summary["val/bayes_accuracy"] <= 1
    assert 0 <= summary["test/accuracy"] <= 1
    found = json.loads(command("evaluate", str(tmp_path / "reward"), "--task", "--json").stdout)["values"]
    for name in ("accuracy", "expected_accuracy", "bayes_accuracy"):
        assert found[name]["value"] == pytest.approx(summary[f"test/{name}"]), name
    assert 1 - best - 1e-6 <= summary["test/expected_accuracy"] <= best + 1e-6  # rounded to fp32
    fit(preferences("task=dpo"), tmp_path / "dpo")
    assert ending == [30, 20]
    assert cached(tmp_path / "cache") == files
    assert read_json(tmp_path / "dpo/summary.json")["data"] == read_json(tmp_path / "reward/summary.json")["data"]
    shutil.rmtree(tmp_path / "cache")
    fit(preferences("task=dpo", "trainer.max_steps=6"), tmp_path / "dpo", resume=True)
    assert cached(tmp_path / "cache") == files
    assembled(preferences("task=dpo", base=answering("llama")))
    assert len(cached(tmp_path / "cache")) == 4
    assembled(preferences("task=dpo", "data.problems.noise=0.6"))
    assert len(cached(tmp_path / "cache")) == 6


def test_a_file_of_pairs_is_whole_or_not_there(
    preferences: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pair_datamodule.write_preferences

    def write(path: Path, found: Any) -> None:
        monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        try:
            real(path, found)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(pair_datamodule, "write_preferences", write)
    with pytest.raises(UserError, match="No space left"):
        assembled(preferences("task=reward"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and "preferences" in str(path)]
    assembled(preferences("task=reward"))
    assert len(cached(tmp_path / "cache")) == 2


def test_an_exported_model_gives_pairs_too(preferences: Any, command: Any, answering: Any, tmp_path: Path) -> None:
    result: Result = command("export", str(answering()), str(tmp_path / "exported"))
    assert result.returncode == 0, result.stderr
    assembled(preferences("task=dpo", base=tmp_path / "exported"))
    assert len(cached(tmp_path / "cache")) == 2


def test_a_model_that_does_not_answer_gives_none(preferences: Any, trained: Path) -> None:
    with pytest.raises(
        UserError, match=r"data=preferences: init_from=.* has not learned to answer; give a run of task=sft"
    ):
        assembled(preferences("task=reward", base=trained))


# A run that goes on

RUNS = {
    "dpo": ("task=dpo",),
    "dpo with adapters": ("task=dpo", *LORA),
    "dpo of the last block": ("task=dpo", "task.train=last_block"),
    "reward": ("task=reward", "model.dropout=0.1"),
    "reward with adapters": ("task=reward", *LORA, "lora.dropout=0.2", "model.dropout=0.1"),
    "reward of the head": ("task=reward", "task.train=head", "model.dropout=0.1"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_bit_for_bit(tune: Any, tmp_path: Path, name: str) -> None:
    """The reference is the model that the run began as, and not the one that it goes on from."""
    whole = goes_on(tune, tmp_path, (*RUNS[name], "data.micro_batch_size=4", "trainer.diagnose_every=2"), 6)
    shown = points(whole)
    assert any("loss_by_position" in tag for tag in shown) == (RUNS[name][0] == "task=dpo")
    assert "vitals_gradient_norm/h.1" in shown
    assert ("vitals_gradient_norm/score" in shown) == (RUNS[name][0] == "task=reward")
    state = torch.load(last(whole), weights_only=True)["state_dict"]
    assert any("lora" in key for key in state) == ("adapters" in name)
    assert ("model.score.weight" in state) == (RUNS[name][0] == "task=reward")
    assert any(key.endswith("c_proj.weight") for key in state) == ("adapters" not in name)


def test_the_reference_must_be_there_and_the_same(
    tune: Any, answering: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(answering(), base)
    with monkeypatch.context() as patched:
        interrupt(patched, Kill(3, 15))
        with pytest.raises(SystemExit):
            tune(tmp_path / "run", "task=dpo", base=base)
    kept = base.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"the model that its policy is compared to is missing: .*base .*; put it back"):
        tune(tmp_path / "run", "task=dpo", base=base, resume=True)
    shutil.copytree(answering("llama"), base)
    with pytest.raises(UserError, match=r"the model that its policy is compared to has changed: .*base had the sha256"):
        tune(tmp_path / "run", "task=dpo", base=base, resume=True)
    shutil.rmtree(base)
    kept.rename(base)
    tune(tmp_path / "run", "task=dpo", base=base, resume=True)
    assert read_json(tmp_path / "run" / "summary.json")["steps"] == 5


def test_a_judge_with_adapters_opens_on_its_base(tune: Any, answering: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(answering(), base)
    tune(tmp_path / "judge", "task=reward", *LORA, base=base)
    model, _, info = load_headed(tmp_path / "judge")
    assert "adapters on" in info.words
    assert model.gpt.lora is None
    rewarded = (
        "task=grpo",
        "task.group=2",
        "reward.name=without",
        "reward.argument=e",
        f"reward.model={tmp_path / 'judge'}",
    )
    chats = written(tmp_path / "chats.jsonl", [{"prompt": f"say {i}", "completion": "yes"} for i in range(48)])
    summary = tune(tmp_path / "grpo", *rewarded, f"data.path={chats}", "trainer.max_steps=2", base=base)
    assert math.isfinite(summary["val/judged_reward"])
    shutil.rmtree(base)
    with pytest.raises(UserError, match=r"the model that its adapters belong on is missing: .*base"):
        load_headed(tmp_path / "judge")


@pytest.mark.parametrize("options", [(), LORA])
def test_a_judge_writes_no_text(command: Any, tune: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    tune(tmp_path / "judge", "task=reward", *options)
    words = "is a reward model, whose outputs are no text: give a language model, such as its init_from"
    for verb in (("generate", "judge", "say 1"), ("export", "judge", "out"), ("evaluate", "judge")):
        result: Result = command(*verb)
        assert result.returncode == 1
        assert words in result.stderr
    with pytest.raises(UserError, match=words):
        tune(tmp_path / "again", "task=reward", base=tmp_path / "judge")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["task=dpo", "data=chat"],
            "task=dpo: improves a model that answers already; add init_from=..., a run of task=sft",
        ),
        (["task=dpo", "data=preferences"], "data=preferences: are answers of init_from's model; add init_from=..."),
        (["data=preferences"], "data=preferences: are answers of init_from's model; add init_from=..."),
        (
            ["data=preferences", "task=pretrain"],
            "data=preferences with task=pretrain: it has preferences; use task=reward or dpo",
        ),
        (
            ["data=preferences", "task=sft"],
            "data=preferences: it has preferences, and task=sft, ppo and grpo learn",
        ),
        (
            ["task=reward", "data=arithmetic"],
            "it has conversations, and task=reward and dpo learn from preferences; give",
        ),
        (
            ["task=reward", "data=chat", "compile=inductor"],
            "compile=inductor with task=reward: its rows have many lengths",
        ),
        (["task=reward", "data=chat", "trainer.strategy=fsdp"], "trainer.strategy=fsdp with task=reward: is for task="),
        (["task=reward", "data=chat", "task.centring=-1"], "task.centring=-1.0: must be at least 0"),
        (["task=reward", "data=chat", "task.centring=inf"], "task.centring=inf: must be at least 0 and finite"),
        (["task=dpo", "data=chat", "task.beta=inf"], "task.beta=inf: must be above 0 and finite"),
        (["task=dpo", "data=chat", "lora.alpha=inf"], "lora.alpha=inf: must be above 0"),
        (["task=reward", "data=chat", "task.margin=much"], "task.margin=much: must be one of none, data"),
        (["task=dpo", "data=chat", "task.beta=0"], "task.beta=0.0: must be above 0"),
        (
            ["task=dpo", "data=chat", "task.variant=hinge"],
            "task.variant=hinge: must be one of sigmoid, ipo, sigmoid_norm",
        ),
        (
            ["task=dpo", "data=chat", "task.label_smoothing=0.5"],
            "task.label_smoothing=0.5: must be at least 0 and below 0.5",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    compose: Any, overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        compose(*overrides)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=dpo", "model.dropout=0.1"], "model.dropout=0.1 with task=dpo: the policy must begin as its reference"),
        (
            ["task=dpo", *LORA, "lora.dropout=0.1"],
            "lora.dropout=0.1 with task=dpo: the policy must begin as its reference",
        ),
        (
            ["task=reward", "lora.rank=2", "lora.targets=[q,lm_head]", "lora.untie=true"],
            "lora.targets=q,lm_head: task=reward",
        ),
        (["data=preferences"], "data.problems.reward=exact: these prompts have no right answer; choose another with"),
        (["data=preferences", "reward.name=lexicn"], "reward.name=lexicn: "),
        (["data=preferences", "reward.name=lexicon"], "reward.name=lexicon: reward=lexicon: needs"),
        (["data=preferences", "data.problems.reward=rime"], "data.problems.reward=rime: reward=rime: "),
    ],
)
def test_so_is_what_does_not_go_with_the_model(settings: Any, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        settings(*overrides)
    assert words in str(refused.value)


def test_a_policy_with_adapters_and_a_value_head_goes_on_and_opens(
    tune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = written(tmp_path / "chats.jsonl", [{"prompt": f"say {i}", "completion": "yes"} for i in range(48)])
    words = ("task=ppo", *LORA, f"data.path={chats}", "task.updates=1", "reward.name=without", "reward.argument=e")
    tune(tmp_path / "whole", *words)
    with monkeypatch.context() as patched:
        interrupt(patched, Kill(3, 15))
        with pytest.raises(SystemExit):
            tune(tmp_path / "stopped", *words)
    tune(tmp_path / "stopped", *words, resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    headed, policy = load_headed(last(tmp_path / "whole"))[0], load_model(last(tmp_path / "whole"))[0]
    assert headed.head_config.kind == "value"
    idx = torch.arange(20)[None]
    assert torch.equal(headed.gpt(idx), policy(idx))
    assert torch.load(last(tmp_path / "whole"), weights_only=True)["state_dict"]["model.score.weight"].any()
