"""Training a part of a model on conversations: adapters, the last block, the head; and what the checkpoints hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import peft
import pytest
import torch
import transformers
from torch import Tensor

from gptlab.data.chat.chat_format import END
from gptlab.formats import checkpoint
from gptlab.formats.open_model import load_model, load_with_adapters
from gptlab.models.gpt import GPT
from gptlab.models.lora import LoRAConfig, adapter_state, adapters, largest_change, merged, without_adapters
from gptlab.system.errors import UserError
from gptlab.system.files import read_json
from gptlab.training.fit import fit
from tests.conftest import Result
from tests.sweeps.test_command_line import planned
from tests.training.test_fit import curve
from tests.training.test_resume import goes_on

WORDS = {"cat": "sees", "dog": "loves", "king": "fears", "queen": "day", "night": "old"}
SFT = ("data=chat", "task.answer_tokens=9", "data.val_fraction=0.2", "trainer=cpu", "data.batch_size=6")
SHORT = ("trainer.max_steps=7", "trainer.val_every=3", "trainer.log_every=1", "optim.lr=1e-2", "model.dropout=0.1")
LONG = ("trainer.max_steps=200", "trainer.val_every=200", "schedule=constant", "optim.lr=2e-2", "optim.weight_decay=0")
LORA = ("lora.rank=3", "lora.dropout=0.2", "lora.targets=[q,v,c_fc]")


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [{"prompt": prompt, "completion": answer} for _ in range(5) for prompt, answer in WORDS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def untied(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny run whose head is not its embedding."""
    run_dir = tmp_path_factory.mktemp("runs") / "untied"
    run(run_dir, "model.tied=false")
    return run_dir


@pytest.fixture(scope="session")
def tune(compose: Any, trained: Path, chats: Path) -> Any:
    """tune(run_dir, *overrides) fine-tunes the model of `trained`, or that of `base`, on `chats`."""

    def tune(run_dir: Path, *overrides: str, base: str | Path = trained, resume: bool = False) -> dict[str, Any]:
        shape = ("model=pretrained", "tokenizer=pretrained", f"init_from={base}", f"data.path={chats}")
        return fit(compose(*SFT, *shape, *overrides), run_dir, resume)

    return tune


def last(run_dir: Path) -> GPT:
    model = load_with_adapters(run_dir / "checkpoints" / "last.ckpt")[0]
    assert isinstance(model, GPT)
    return model


def tokens(count: int) -> Tensor:
    return torch.randint(count, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def adapted(tune: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of adapters; not to be written to."""
    run_dir = tmp_path_factory.mktemp("runs") / "adapted"
    tune(run_dir, *SHORT, *LORA)
    return run_dir


@pytest.fixture(scope="session")
def reader(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something of its text."""
    run_dir = tmp_path_factory.mktemp("runs") / "reader"
    run(run_dir, "trainer.max_steps=300", "trainer.val_every=300", "optim.lr=1e-2")
    return run_dir


@pytest.fixture(scope="session")
def learned(tune: Any, reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters that knows the answers by heart."""
    run_dir = tmp_path_factory.mktemp("runs") / "learned"
    tune(run_dir, *LONG, "lora.rank=8", "lora.targets=[c_attn,attn.c_proj,c_fc,mlp.c_proj]", base=reader)
    return run_dir


def test_adapters_learn_to_answer_and_to_stop(learned: Path, reader: Path) -> None:
    """New tokens begin alike: with their rows as frozen as the others, <|end|> could not be told from <|user|>."""
    summary = read_json(learned / "summary.json")
    assert summary["val/stop_rate"] == summary["val/accuracy"] == 1
    before, after = load_model(reader)[0], load_model(learned)[0]
    known = before.config.vocab_size
    assert isinstance(after, GPT)
    assert isinstance(before, GPT)
    assert torch.equal(after.wte.weight[:known], before.wte.weight)
    assert after.lm_head.weight is after.wte.weight
    assert len(after.wte.weight[known:].unique(dim=0)) == 5


def test_the_last_block_learns_to_stop_too_and_old_rows_stay(tune: Any, reader: Path, tmp_path: Path) -> None:
    tune(tmp_path, *LONG, "task.train=last_block", "optim.weight_decay=0.1", base=reader)
    assert read_json(tmp_path / "summary.json")["val/stop_rate"] == 1
    before, after = load_model(reader)[0].state_dict(), load_model(tmp_path)[0].state_dict()
    known = len(before["wte.weight"])
    assert torch.equal(after["wte.weight"][:known], before["wte.weight"])
    assert len(after["wte.weight"][known:].unique(dim=0)) == 5
    changed = {name for name, tensor in before.items() if not torch.equal(after[name][: len(tensor)], tensor)}
    assert changed == {name for name in before if name.startswith(("h.1.", "ln_f."))}


def test_of_a_head_alone_the_embeddings_of_new_tokens_are_trained(tune: Any, untied: Path, tmp_path: Path) -> None:
    tune(tmp_path, *SHORT, "task.train=head", "optim.weight_decay=0.1", base=untied)
    before, after = load_model(untied)[0].state_dict(), load_model(tmp_path)[0].state_dict()
    known = len(before["wte.weight"])
    assert torch.equal(after["wte.weight"][:known], before["wte.weight"])
    assert len(after["wte.weight"][known:].unique(dim=0)) > 3  # nobody is a system
    changed = {name for name, tensor in before.items() if not torch.equal(after[name][: len(tensor)], tensor)}
    assert changed == {name for name in before if name.startswith("lm_head.")}


@pytest.mark.parametrize("base", ["trained", "untied"])
def test_no_row_of_a_token_that_was_known_moves(
    tune: Any, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(base)
    tune(tmp_path, *SHORT, *LORA, "optim.weight_decay=0.5", base=source)
    before, after = load_model(source)[0].state_dict(), load_model(tmp_path)[0].state_dict()
    for name in ("wte.weight", "lm_head.weight"):
        known = len(before[name])
        assert torch.equal(after[name][:known], before[name])
        assert len(after[name][known:].unique(dim=0)) > 1  # of the head's the end alone is learned
    changed = {name for name, tensor in before.items() if not torch.equal(after[name][: len(tensor)], tensor)}
    assert changed == {f"h.{i}.{layer}.weight" for i in range(2) for layer in ("attn.c_attn", "mlp.c_fc")}


@pytest.mark.parametrize("part", [LORA, ("task.train=last_block",)], ids=["lora", "last block"])
def test_the_first_validation_is_the_bases_to_the_bit(tune: Any, adapted: Path, tmp_path: Path, part: Any) -> None:
    tune(tmp_path / "part", *SHORT, *part, "trainer.max_steps=1")
    tune(tmp_path / "all", *SHORT, "trainer.max_steps=1")
    first = [curve(tmp_path / name, "val/loss")[0] for name in ("part", "all")]
    assert first[0] == first[1]
    assert curve(tmp_path / "part")[0] != 0
    assert curve(adapted, "val/loss")[-1] < first[0]


def test_a_checkpoint_holds_the_adapters_alone_and_names_its_base(adapted: Path, trained: Path) -> None:
    content = checkpoint.read_checkpoint(adapted / "checkpoints" / "last.ckpt")
    model = last(adapted)
    assert content["state_dict"].keys() == {f"model.{name}" for name in adapter_state(model)}
    of_optimizer = sum(each["exp_avg"].numel() for each in content["optimizer_states"][0]["state"].values())
    trained_here = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert of_optimizer == trained_here == read_json(adapted / "summary.json")["trained_parameters"]
    assert trained_here == 2 * 3 * (2 * (33 + 33) + (33 + 132)) + 5 * 33
    assert content["gptlab"]["adapters"]["base"]["name"] == str(trained)
    assert model.lora == LoRAConfig(3, 16, ("q", "v", "c_fc"), 0.2)
    with pytest.raises(UserError, match="it has adapters alone, which belong on another model"):
        checkpoint.load_checkpoint(adapted)


def test_the_merged_model_is_opened_and_the_fast_decoder_runs_it(adapted: Path) -> None:
    model, plain = last(adapted), load_model(adapted / "checkpoints" / "last.ckpt")[0]
    assert not adapters(plain)
    assert isinstance(plain, GPT)
    assert largest_change(model, plain, tokens(plain.config.vocab_size)) < 1e-5
    assert largest_change(plain, merged(model), tokens(plain.config.vocab_size)) == 0


@pytest.mark.parametrize("part", [LORA, ("task.train=last_block",)])
def test_a_stopped_run_goes_on_bit_for_bit(tune: Any, tmp_path: Path, part: tuple[str, ...]) -> None:
    goes_on(
        tune, tmp_path, (*SHORT, *part, "data.micro_batch_size=3", "trainer.diagnose_every=2", "trainer.ema=0.9"), 4
    )


def test_a_run_can_begin_from_a_model_with_adapters(tune: Any, adapted: Path, tmp_path: Path) -> None:
    """Adapters on merged adapters, whose chat tokens are no longer new."""
    tune(tmp_path, *SHORT, *LORA, base=adapted)
    assert not any("new" in name for name in adapter_state(last(tmp_path)))
    best = load_model(adapted)[0]
    assert load_model(tmp_path)[0].config == best.config


@pytest.fixture
def moved(tune: Any, trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run of adapters, and its base, which may be written to."""
    base, run_dir = tmp_path / "base", tmp_path / "run"
    shutil.copytree(trained, base)
    tune(run_dir, *SHORT, *LORA, "trainer.max_steps=3", base=base)
    return run_dir, base


def test_a_base_that_is_missing_or_has_changed_is_said(moved: tuple[Path, Path], tune: Any, untied: Path) -> None:
    run_dir, base = moved
    base.rename(base.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"cannot be opened: the model that its adapters belong on is missing: .*base"):
        load_model(run_dir)
    with pytest.raises(UserError, match=r"the model that its adapters belong on is missing: .*base"):
        tune(run_dir, *SHORT, *LORA, base=base, resume=True)
    shutil.copytree(untied, base)
    with pytest.raises(UserError, match="cannot be opened: the model that its adapters belong on has changed"):
        load_model(run_dir)
    with pytest.raises(UserError, match="the model that its adapters belong on has changed"):
        tune(run_dir, *SHORT, *LORA, base=base, resume=True)


def test_a_base_is_found_by_its_name_where_a_project_was_moved(
    tune: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    shutil.copytree(trained, tmp_path / "here" / "base")
    monkeypatch.chdir(tmp_path / "here")
    tune(tmp_path / "here" / "run", *SHORT, *LORA, "trainer.max_steps=1", base="base")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert load_model("run")[0].config.vocab_size == load_model("base")[0].config.vocab_size + 5


def test_adapters_that_belong_on_themselves_are_refused(moved: tuple[Path, Path]) -> None:
    run_dir, base = moved
    shutil.rmtree(base)
    base.symlink_to(run_dir)
    with pytest.raises(UserError, match="more than 8 models with adapters belong on each other"):
        load_model(run_dir)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about, state: about["adapters"]["lora"].update(rank=10**9), "and must have 1000000000"),
        (lambda about, state: about["adapters"]["lora"].update(rank="3"), "lora.rank='3': has the wrong type"),
        (lambda about, state: about["adapters"].pop("base"), "it does not name its base"),
        (lambda about, state: about["adapters"]["base"].pop("sha256"), "what it says of its init_from is damaged"),
        (lambda about, state: about["adapters"]["base"].update(name=3), "what it says of its init_from is damaged"),
        (lambda about, state: about["model"].update(n_layer=10**6), "its adapters have ranks"),
        (lambda about, state: about["model"].update(vocab_size=10**6), "its adapters have ranks"),
        (lambda about, state: about["model"].update(n_embd=36), "do not fit the model's config"),
        (lambda about, state: state.popitem(), "is missing"),
    ],
)
def test_damaged_adapters_are_refused(adapted: Path, tmp_path: Path, change: Any, words: str) -> None:
    content = checkpoint.read_checkpoint(adapted / "checkpoints" / "last.ckpt", mapped=False)
    change(content["gptlab"], content["state_dict"])
    checkpoint.save_checkpoint(content, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError, match=r"damaged.ckpt cannot be opened: ") as refused:
        load_model(tmp_path / "damaged.ckpt")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.rank=4"], "lora.rank=4: what is not trained would stay random; add init_from=..., a trained model, or"),
        (["task.train=head"], "task.train=head: what is not trained would stay random; add init_from=..."),
        (["task.train=heads"], "task.train=heads: must be one of all, head, last_block"),
        (
            ["init_from=x", "lora.rank=4", "task.train=head"],
            "task.train=head with lora.rank=4: adapters are train",
        ),
        (["init_from=x", "lora.rank=4", "trainer=fsdp"], "trainer.strategy=fsdp with lora.rank=4: divides weights"),
        (["lora.rank=-1"], "lora.rank=-1: must be at least 1, or 0 for no adapters"),
        (["lora.dropout=1"], "lora.dropout=1.0: must be at least 0 and below 1"),
        (["lora.targets=[q,w]"], "lora.targets=w: no such layer; there are"),
        (["lora.targets=q"], "lora.targets: "),
        (["+lora.ranks=1"], "lora.ranks=1: there is no such key; did you mean rank?"),
    ],
)
def test_what_does_not_go_together_is_refused(compose: Any, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(*overrides)
    assert words in str(refused.value)


def test_models_and_optimizers_without_such_parts_are_refused(tune: Any, compose: Any, tmp_path: Path) -> None:
    fit(compose("model=bigram", "data=text", "trainer=cpu", "trainer.max_steps=1"), tmp_path / "bigram")
    for part, words in ((LORA, "lora.rank=3: adapters are for a GPT"), (("task.train=head",), "a Bigram is one table")):
        with pytest.raises(UserError, match=words):
            tune(tmp_path / "run", *SHORT[:4], *part, base=tmp_path / "bigram")
    with pytest.raises(UserError, match=r"optim=muon is for the matrices .* here none of them is trained"):
        tune(tmp_path / "run", *SHORT, *LORA, "optim=muon")
    with pytest.raises(UserError, match=r"task.train=head: the head of this model is its embedding, too"):
        tune(tmp_path / "run", *SHORT, "task.train=head")
    assert not (tmp_path / "run").exists()


def test_generate_asks_a_model_with_adapters(command: Any, learned: Path) -> None:
    result: Result = command("generate", str(learned), "king", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    assert "fears\n" in result.stdout


def test_an_export_is_merged_and_says_what_that_costs(command: Any, learned: Path, tmp_path: Path) -> None:
    result: Result = command("export", str(learned), "exported")
    assert result.returncode == 0, result.stderr
    change = float(result.stdout.split("adapters merged in fp32: logits change by at most ")[1].split("\n")[0])
    assert 0 < change < 1e-4
    theirs, ours = load_model(tmp_path / "exported")[0], load_model(learned)[0]
    assert torch.equal(theirs.state_dict()["h.0.attn.c_attn.weight"], ours.state_dict()["h.0.attn.c_attn.weight"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True but the target module is `torch.nn.Linear`")
@pytest.mark.parametrize("tied", [True, False])
def test_peft_answers_as_we_do_with_an_exported_adapter(
    command: Any, tune: Any, learned: Path, untied: Path, tmp_path: Path, tied: bool
) -> None:
    """With the rows of new tokens, and opened again by gptlab."""
    run_dir = learned
    if not tied:
        run_dir = tmp_path / "run"
        tune(run_dir, *SHORT, *LORA, base=untied)
    result: Result = command("export", str(run_dir), "exported", "--format", "peft")
    assert result.returncode == 0, result.stderr
    base = transformers.AutoModelForCausalLM.from_pretrained("exported/base", attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, "exported/adapter").eval()
    model = load_with_adapters(run_dir)[0].eval()
    idx = tokens(model.config.vocab_size)
    with torch.no_grad():
        logits = theirs(input_ids=idx).logits[..., : model.config.vocab_size]
    torch.testing.assert_close(model(idx), logits, rtol=1e-5, atol=1e-5)
    assert (without_adapters(model)(idx) - logits).abs().max() > 0.01
    ours, tokenizer, info = load_model("exported/adapter")
    torch.testing.assert_close(ours(idx)[..., : model.config.vocab_size], logits, rtol=1e-5, atol=1e-5)
    assert END in tokenizer.special_tokens
    assert "PEFT adapter" in info.words
    Path("exported").rename("moved")  # whose base is then beside the adapter
    assert torch.equal(load_model("moved/adapter")[0](idx), ours(idx))


def test_what_has_no_adapters_is_no_peft_folder(command: Any, trained: Path) -> None:
    result: Result = command("export", str(trained), "exported", "--format", "peft")
    assert result.returncode == 1
    assert "has no adapters; use --format hf" in result.stderr


def test_rows_of_new_tokens_that_do_not_fit_are_refused(tune: Any, tmp_path: Path) -> None:
    tune(tmp_path, *SHORT, "task.train=last_block", "trainer.max_steps=1")
    name = "model.wte.new.rows"
    for rows in (torch.zeros(5, 32), torch.zeros(99, 33), torch.zeros(1).expand(5, 1 << 40), torch.tensor(1.0), "rows"):
        content = checkpoint.read_checkpoint(tmp_path / "checkpoints" / "last.ckpt", mapped=False)
        content["state_dict"][name] = rows
        checkpoint.save_checkpoint(content, tmp_path / "damaged.ckpt")
        with pytest.raises(UserError, match=r"damaged.ckpt does not fit together"):
            load_model(tmp_path / "damaged.ckpt")


def test_text_is_learned_by_adapters_too(run: Any, compose: Any, reader: Path, tmp_path: Path) -> None:
    words = ("data=text", "init_from=" + str(reader), "model=pretrained", "tokenizer=pretrained", "trainer=cpu")
    fit(compose(*words, *SHORT, *LORA, "data.batch_size=6"), tmp_path)
    assert curve(tmp_path, "val/loss")[0] == read_json(reader / "summary.json")["val/loss"]
    assert load_model(tmp_path)[0].config.vocab_size == load_model(reader)[0].config.vocab_size
    assert (tmp_path / "samples.txt").read_text().startswith("--- step 0")


def test_a_report_compares_ranks_and_shows_how_much_is_trained(
    command: Any, tune: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shown = ("lora.targets=[c_fc]", "trainer.max_steps=2", "trainer.diagnose_every=0")
    for words in (["lora.rank=1"], ["lora.rank=4"], ["lora.rank=0"]):
        tune(tmp_path / "sweep" / words[0], *SHORT, *shown, *words)
    result: Result = command("report", str(tmp_path / "sweep"), "--no-plots")
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path / "sweep" / "report" / "report.csv")
    known = 5 * 33
    of_rank = {rank: 2 * rank * (33 + 132) + known for rank in (1, 4)}
    whole = load_model(tmp_path / "sweep" / "lora.rank=0")[0].num_parameters()
    assert dict(zip(table["lora.rank"], table["trained_parameters"], strict=True)) == {**of_rank, 0: whole}
    assert "trained" in result.stdout
    assert f"trained: {of_rank[1]:,} of {whole + of_rank[1]:,} parameters" in caplog.text
    assert len(planned("-m", "init_from=x", "lora.rank=1,4,16").jobs) == 3
