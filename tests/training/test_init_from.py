"""A run that begins with a trained model: what it takes over, what can be changed, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.functional import cross_entropy

from gptlab import models
from gptlab.data.pieces import Piece
from gptlab.data.split import Split, split_pieces
from gptlab.data.tokenizers import BPETokenizer, CharTokenizer, JsonTokenizer
from gptlab.formats import checkpoint, writing
from gptlab.formats.description import ModelInfo
from gptlab.models import GPT, GPTConfig
from gptlab.runs import compose as command_words
from gptlab.runs import identity
from gptlab.system.errors import UserError
from gptlab.training import init_from
from gptlab.training.fit import fit
from tests.data.test_prepare import beginning
from tests.sweeps.test_command_line import planned
from tests.test_cli import assert_refused
from tests.training.runs_compared import assert_same_run
from tests.training.test_fit import curve
from tests.training.test_resume import Kill, interrupt

SHORT = (
    *("data=text", "data.cache_dir=cache", "data.batch_size=6", "trainer=cpu", "trainer.max_steps=7"),
    *("trainer.val_every=3", "trainer.log_every=1", "trainer.sample_tokens=3"),
)
SHAPE = ("model.n_layer=2", "model.n_head=3", "model.n_embd=33", "model.block_size=17")  # of `trained`


@pytest.fixture
def tune(command: Any, text_file: Path, tmp_path: Path) -> Any:
    """tune("init_from=...", ...) is a short run in the folder `run`, which is returned."""

    def tune(*words: str, folder: str = "run", text: Path = text_file) -> Path:
        result = command("train", *SHORT, f"data.path='{text}'", f"hydra.run.dir={folder}", *words)
        assert result.returncode == 0, result.stderr
        return tmp_path / folder

    return tune


@pytest.fixture(scope="session")
def bigram(compose: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "bigram"
    fit(compose("model=bigram", *SHORT[:1], *SHORT[2:]), run_dir)
    return run_dir


def last(run_dir: Path) -> Any:
    return checkpoint.load_checkpoint(run_dir / "checkpoints" / "last.ckpt")


# What is taken over.


def test_the_first_validation_is_the_sources_own_and_training_lowers_it(tune: Any, trained: Path) -> None:
    run = tune(f"init_from={trained}", "optim.lr=1e-2")
    _, tokenizer, info = checkpoint.load_checkpoint(trained)
    losses = curve(run, "val/loss")
    assert losses[0] == pytest.approx(info.metrics["val/loss"], abs=1e-6)
    assert losses[-1] < losses[0] - 0.1
    assert last(run)[1].to_dict() == tokenizer.to_dict()


def test_a_run_holds_the_architecture_that_it_has_taken(tune: Any, trained: Path) -> None:
    run = tune(f"init_from={trained}")
    model, tokenizer, info = last(run)
    assert model.config == checkpoint.load_checkpoint(trained)[0].config
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert config == info.config
    assert config["init_from"] == str(trained)  # type: ignore[index, call-overload]
    there = {"vocab_size": tokenizer.vocab_size, **config["model"]}  # type: ignore[index, call-overload, dict-item]
    assert there == models.to_dict(model.config)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data"]["tokenizer"] == "char"
    assert summary["parameters"] == model.num_parameters()


def test_the_optimizer_begins_anew(tune: Any, trained: Path) -> None:
    run = tune(f"init_from={trained}", "schedule.warmup_steps=3")
    assert curve(run, "lr")[:4] == pytest.approx([0.25 * 3e-5, 0.5 * 3e-5, 0.75 * 3e-5, 3e-5])
    steps = {
        float(state["step"])
        for state in checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")["optimizer_states"][0][
            "state"
        ].values()
    }
    assert steps == {7.0}


def test_seeds_share_the_weights_and_not_the_batches(tune: Any, trained: Path) -> None:
    a, b = (tune(f"init_from={trained}", f"seed={seed}", folder=str(seed)) for seed in (1, 2))
    assert curve(a, "val/loss")[0] == curve(b, "val/loss")[0]
    assert curve(a) != curve(b)


@pytest.mark.parametrize("model", ["pretrained", "bigram"])
def test_a_bigram_goes_on_as_a_bigram(tune: Any, bigram: Path, model: str) -> None:
    run = tune(f"init_from={bigram}", f"model={model}", "model.block_size=5")
    assert last(run)[0].config == models.BigramConfig(last(bigram)[1].vocab_size, 5)


def test_a_gpt2_of_hugging_face_is_fine_tuned(tune: Any, text_file: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "hf gpt2"
    tokenizer = BPETokenizer.fit([text_file.read_text()], 293)
    torch.manual_seed(3)
    shape = {"vocab_size": 293, "n_positions": 23, "n_embd": 30, "n_layer": 2, "n_head": 3}
    ids = {"bos_token_id": 292, "eos_token_id": 292}
    source = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **ids)).eval()
    source.save_pretrained(folder)
    from gptlab.formats import huggingface_tokenizer

    for name, content in huggingface_tokenizer.tokenizer_files(tokenizer, 23).items():
        (folder / name).write_text(content)
    run = tune(f"init_from='{folder}'", "optim.lr=1e-2", "data.val_fraction=0.02", "trainer.max_steps=30")
    model, ours, _ = last(run)
    assert ours.tokens == tokenizer.tokens
    assert (model.config.n_layer, model.config.block_size, model.config.n_embd) == (2, 23, 30)
    text = text_file.read_text()
    part = torch.from_numpy(tokenizer.encode(text[int(len(text) * 0.98) :]))
    nats = 0.0
    for start in range(0, len(part) - 1, 23):
        x, y = part[start : start + 23], part[start + 1 : start + 24]
        with torch.no_grad():
            logits = source(x[None, : len(y)]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, y, reduction="sum").item()
    losses = curve(run, "val/loss")
    assert losses[0] == pytest.approx(nats / (len(part) - 1), abs=1e-5)
    assert losses[-1] < losses[0] - 0.5


# What can be changed.


def test_fewer_positions_are_the_first_ones(trained: Path, tmp_path: Path) -> None:
    source = checkpoint.load_checkpoint(trained)[0]
    model, *_ = init_from.load(trained, {"name": "pretrained", "block_size": 11}, tmp_path)
    assert model.config.block_size == 11
    assert torch.equal(model.wpe.weight, source.wpe.weight[:11])  # type: ignore
    assert model.lm_head.weight is model.wte.weight  # type: ignore[union-attr]
    idx = torch.arange(11)[None]
    assert torch.equal(model.eval()(idx), source(idx))


def test_a_cropped_run_trains_and_goes_on(tune: Any, trained: Path, command: Any) -> None:
    run = tune(f"init_from={trained}", "model.block_size=11")
    assert OmegaConf.load(run / "config.yaml").model.block_size == 11
    assert command("train", "resume=run", "trainer.max_steps=9").returncode == 0
    assert last(run)[0].config.block_size == 11


def test_positions_that_are_not_learned_have_any_number(run: Any, tmp_path: Path) -> None:
    run(tmp_path / "rope", "model.pos=rope", "model.n_embd=36", "trainer.max_steps=1")
    model, *_ = init_from.load(tmp_path / "rope", {"name": "pretrained", "block_size": 29}, tmp_path)
    assert model(torch.arange(20).repeat(2)[None, :29]).shape[1] == 29


def test_dropout_and_kernels_can_be_changed(trained: Path, tmp_path: Path) -> None:
    changes = {"dropout": 0.5, "attention": "manual", "gradient_checkpointing": True}
    model, *_ = init_from.load(trained, {"name": "pretrained", **changes}, tmp_path)
    source = checkpoint.load_checkpoint(trained)[0]
    idx = torch.arange(17)[None]
    assert not torch.equal(model(idx), model(idx))  # it is in training mode
    torch.testing.assert_close(model.eval()(idx), source(idx))
    assert {key: getattr(model.config, key) for key in changes} == changes


def test_an_architecture_that_is_typed_must_fit_and_initialisation_does_not_matter(tune: Any, trained: Path) -> None:
    explicit = ("model=gpt800k", *SHAPE, "model.dropout=0.1", "model.init=torch", "model.n_inner=132")
    typed = tune(f"init_from={trained}", *explicit, "optim.lr=1e-3", folder="typed")
    assert curve(typed, "val/loss")[0] == pytest.approx(
        checkpoint.load_checkpoint(trained)[2].metrics["val/loss"], abs=1e-6
    )


def test_the_checkpoints_own_tokenizer_can_be_typed(tune: Any, trained: Path) -> None:
    run = tune(f"init_from={trained}", "tokenizer=char")
    assert curve(run, "val/loss")[0] == pytest.approx(
        checkpoint.load_checkpoint(trained)[2].metrics["val/loss"], abs=1e-6
    )


# What is refused.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["init_from=outputs/run/none"], ["outputs/run/none: no such", "runs lie in outputs/<name>/<time>"]),
        (
            ["model.n_layer=3"],
            ["model.n_layer: model=pretrained has the architecture of init_from", "model.block_size, model.dr"],
        ),
        (["+model.n_layer=3"], ["model.n_layer=3: model=pretrained has the architecture of init_from"]),
        (["arch=llama"], ["model.bias=False: model=pretrained has the architecture of init_from"]),
        (["model.block_size=18"], ["model.block_size=18", "has learned positions for 17 tokens", "=17 or less"]),
        (["model.attention=none"], ["does not fit", "model.attention is none here and some there"]),
        (["model.attention=flash"], ["model.attention=flash: must be one of"]),
        (["model.dropout=2"], ["model.dropout=2.0: must be at least 0 and below 1"]),
        (
            ["model=gpt800k", "model.n_layer=2", "arch=llama"],
            [
                "does not fit the model: model.n_head is 4 here and 3 there, model.n_embd is 128 here and 33 there, ",
                "model.norm is rmsnorm here and layernorm there, model.pos is rope here and learned there, ",
                "leave these keys out, or use model=pretrained, which takes its architecture",
            ],
        ),
        (["model=bigram"], ["does not fit the model: model.name is bigram here and gpt there; "]),
        (
            ["tokenizer=byte"],
            ["tokenizer=byte is not the one that init_from was trained with (char): it has 256 tokens, that one 22; "],
        ),
        (["tokenizer.vocab_size=300"], ["tokenizer.vocab_size=300: tokenizer=pretrained has its own; leave it out"]),
    ],
)
def test_what_does_not_fit_is_one_message_and_leaves_nothing(
    command: Any, trained: Path, text_file: Path, tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    source = [] if words[0].startswith("init_from") else [f"init_from={trained}"]
    data = ("data=text", f"data.path='{text_file}'", "trainer=cpu")
    assert_refused(command("train", *data, *source, *words), *expected)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_other_ids_is_refused_even_if_there_are_as_many() -> None:
    with pytest.raises(UserError, match=r"tokenizer=char .* with \(char\): token 2 is b'c' here and b'd' there; leave"):
        init_from.check_tokenizer(CharTokenizer("abc"), CharTokenizer("abd"))


def test_a_bigram_has_no_dropout(command: Any, bigram: Path, text_file: Path) -> None:
    result = command("train", "data=text", f"data.path='{text_file}'", f"init_from={bigram}", "model.dropout=0.1")
    assert_refused(result, "model.dropout=0.1: init_from=", "is a bigram, which has none")


def test_a_resumed_run_keeps_what_it_began_with(command: Any, trained: Path) -> None:
    result = command("train", f"resume={trained}", "init_from=gpt2")
    assert_refused(result, "init_from=gpt2: would make it another run; start a new one without resume=")
    result = command("train", f"resume={trained}", "task.beta=0.5")
    assert_refused(result, "task.beta: would make it another run; start a new one without resume=")


def test_a_text_of_other_characters_is_refused(command: Any, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("the cat sees 中文 " * 200)
    result = command("train", *SHORT, "data.path=my.txt", f"init_from={trained}")
    assert_refused(
        result,
        "data=text: init_from's tokenizer (char, 22 in its vocabulary) lacks 2 of the text's characters, 12% of it: "
        "'中' '文'; begin with a model that reads any text, e.g. init_from=gpt2",
    )
    assert not (tmp_path / "outputs").exists()


def test_a_few_characters_that_the_tokenizer_lacks_are_left_out_aloud(
    tune: Any, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = tmp_path / "my.txt"
    text.write_text("é" + "the cat sees a dog.\n" * 200)
    run = tune(f"init_from={trained}", text=text)
    assert "the text has 1 distinct characters that init_from's tokenizer lacks" in (run / "train.log").read_text()
    assert last(run)[1].vocab_size == 22


def test_documents_without_a_mark_between_them_are_said(tune: Any, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text("the cat sees a dog.\n" * 100)
    run = tune(f"init_from={trained}", text=folder)
    assert "init_from's tokenizer has no end of text" in (run / "train.log").read_text()


def write_llama(folder: Path) -> JsonTokenizer:
    """A Llama of random weights, with its tokenizer, which begins texts with <s> and ends them with </s>."""
    torch.manual_seed(5)
    tokenizer = beginning(space=True)  # which belongs to no text
    config = GPTConfig(258, block_size=16, n_layer=1, n_head=2, n_embd=16, pos="rope", norm="rmsnorm", mlp="swiglu")
    folder.mkdir()
    model = GPT(dataclasses.replace(config, bias=False))
    writing.write_hf(model, tokenizer, ModelInfo(folder, None, {}, {}, None, ""), folder)
    return tokenizer


def test_an_end_of_text_that_is_spelled_out_is_offered_to_evaluate(command: Any, tmp_path: Path) -> None:
    write_llama(tmp_path / "llama")
    (tmp_path / "my.txt").write_text("\n</s>\n".join(f"story {i}" for i in range(99)))

    def notes(*flags: str) -> list[str]:
        found = json.loads(command("evaluate", "llama", "--data", "my.txt", "--json", *flags).stdout)
        return [note for note in found["notes"] if "stands in the text" in note]

    (offer,) = notes()
    assert offer.endswith('--separator "</s>" makes it the end of a document')
    assert notes("--separator", "</s>") == []


def test_each_document_begins_as_the_model_expects_in_data_and_evaluation_alike(
    command: Any, tune: Any, tmp_path: Path
) -> None:
    tokenizer = write_llama(tmp_path / "llama")
    documents = [f"the old cat sees {n} dogs." for n in range(300)]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    run = tune("init_from=llama", "data.split=document", text=tmp_path / "docs.jsonl")

    found = json.loads(command("evaluate", "run/checkpoints/last.ckpt", "--json").stdout)
    assert found["protocol"] == "whole split, windows of 16, <s> before each text"
    own = json.loads((run / "summary.json").read_text())
    assert found["nats_per_token"] == pytest.approx(own["val/loss"], abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(own["val/bpb"], rel=1e-6)

    held_out = [piece.text for piece in eval_documents(tmp_path / "docs.jsonl")]
    ids = [i for text in held_out for i in (256, *tokenizer.encode(text).tolist(), 257)]
    assert found["tokens"] == len(ids) - len(held_out)  # all but <s>
    assert found["bytes"] == len("".join(held_out))
    assert sum(found["tokens_by_position"]) == found["tokens"]
    trained = last(run)[0]
    nats = 0.0
    for first in range(0, len(ids) - 1, 16):
        window = torch.tensor(ids[first : first + 17])
        losses = cross_entropy(trained(window[None, :-1])[0], window[1:], reduction="none")
        nats += losses[window[1:] != 256].sum().item()
    assert found["nats_per_token"] == pytest.approx(nats / found["tokens"], abs=1e-5)

    for told in (False, True):  # a run of a version that did not begin its documents so is told when it is resumed
        steps = json.loads((run / "summary.json").read_text())["steps"]
        file = run / "checkpoints" / "last.ckpt"
        content = checkpoint.read_checkpoint(file, mapped=False)
        assert content["begin"] == [256]
        if told:
            del content["begin"]
            checkpoint.save_checkpoint(content, file)
        result = command("train", f"resume={run}", f"trainer.max_steps={steps + 1}")
        assert result.returncode == 0
        log = (run / "train.log").read_text()
        assert ("until now no text of this run began with <s>; from here on each does" in log) is told


def eval_documents(file: Path) -> list[Piece]:
    documents = [Piece(json.loads(line)["text"], True) for line in file.read_text().splitlines()]
    return [
        Piece(text, last)
        for part, text, last in split_pieces(documents, Split("document", 0.1, 0.0), 0)
        if part == "val"
    ]


# Going on, and many of them.


def test_a_run_that_was_stopped_goes_on_bit_for_bit_without_its_source(
    tune: Any, command: Any, trained: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "source")
    words = ("init_from=source", "data.micro_batch_size=2", "model.block_size=13", "optim.lr=1e-3")
    whole = tune(*words, folder="whole")
    with monkeypatch.context() as patch:
        interrupt(patch, Kill(7, signal.SIGTERM))
        assert command("train", *SHORT, f"data.path='{text_file}'", "hydra.run.dir=cut", *words).returncode == 143
    shutil.rmtree(tmp_path / "source")
    torch.manual_seed(999)
    result = command("train", "resume=cut")
    assert result.returncode == 0, result.stderr
    assert_same_run(tmp_path / "cut", whole)
    assert OmegaConf.load(tmp_path / "cut" / "config.yaml") == OmegaConf.load(whole / "config.yaml")


def test_a_sweep_over_checkpoints_has_a_job_for_each_and_for_none(trained: Path, bigram: Path) -> None:
    command = planned("-m", f"init_from=null,{trained},{bigram}", "seed=1,2", "trainer.max_steps=3")
    jobs = command.jobs  # type: ignore[attr-defined]
    with command_words.open_conf():
        configs = [command.config_of(job.point) for job in jobs]
        child = hydra.compose("train", command_words.with_implied_groups([*jobs[-1].words]))
    assert [config["init_from"] for config in configs] == [None, None, *[str(trained)] * 2, *[str(bigram)] * 2]
    assert [config["model"]["name"] for config in configs] == ["gpt"] * 2 + ["pretrained"] * 4
    assert [config["tokenizer"]["name"] for config in configs] == ["char"] * 2 + ["pretrained"] * 4
    assert len({job.dir for job in jobs}) == 6
    plain = OmegaConf.to_container(child, resolve=True)
    assert {**configs[-1], "sweep": None} == {**plain, "sweep": None}  # type: ignore[dict-item]


@pytest.mark.slow
def test_a_sweep_over_checkpoints_ends_in_a_table(
    shell: Any, trained: Path, bigram: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ("-m", *SHORT, f"data.path='{text_file}'", f"init_from={trained},{bigram}", "seed=1,2", "name=both")
    process = shell("-m", "gptlab.train", *words)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    table = pd.read_csv(tmp_path / "outputs" / "sweeps" / "both" / "report" / "report.csv")
    assert table["init_from"].tolist() == [str(trained), str(bigram)]
    assert table["n"].tolist() == [2, 2]


@pytest.mark.slow
def test_two_processes_begin_with_the_same_weights(shell: Any, trained: Path, text_file: Path, tmp_path: Path) -> None:
    for devices in (1, 2):
        words = (*SHORT, f"data.path='{text_file}'", f"init_from={trained}", "model.dropout=0")
        process = shell("-m", "gptlab.train", *words, f"trainer.devices={devices}", f"hydra.run.dir={devices}")
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    for key in ("train/loss", "val/loss"):
        assert curve(tmp_path / "2", key) == pytest.approx(curve(tmp_path / "1", key), abs=1e-5)


def test_sizes_cannot_be_swept_below_one_checkpoint(command: Any, trained: Path, tmp_path: Path) -> None:
    result = command("train", "-m", f"init_from={trained}", "model.n_layer=1,2")
    assert_refused(result, "model.n_layer: model=pretrained has the architecture of init_from")


def test_without_it_a_run_is_named_as_in_earlier_versions() -> None:
    old = {"name": "a", "data": {"name": "text"}, "model": {"n_kv_head": None}}
    assert identity.config_hash({**old, "init_from": None}, "0") == identity.config_hash(old, "0")
    assert identity.config_hash({**old, "init_from": "gpt2"}, "0") != identity.config_hash(old, "0")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=1"], []),
        (["init_from=null"], []),
        (["init_from=x", "resume=y"], []),
        (["seed=1", "init_from=x"], ["model=pretrained", "tokenizer=pretrained"]),
        (["+init_from=x", "--cfg", "job"], ["model=pretrained", "tokenizer=pretrained"]),
        (["init_from=x", "model=gpt1m"], ["tokenizer=pretrained"]),
        (["init_from=x", "experiment=overfit"], ["tokenizer=pretrained"]),
        (["init_from=x", "tokenizer=gpt2"], ["model=pretrained"]),
    ],
)
def test_init_from_chooses_model_and_tokenizer_where_nothing_else_does(words: list[str], expected: list[str]) -> None:
    completed = command_words.with_implied_groups(words)
    assert [word for word in completed if word not in words] == expected
    assert [word for word in completed if word in words] == words


def test_weights_are_read_and_not_drawn(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    init_from.load(trained, {"name": "pretrained", "block_size": 5}, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
