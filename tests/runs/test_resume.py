"""The folder of a resumed run is chosen from the words of the command line, before Hydra sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gptlab.runs import resume
from gptlab.runs.compose import compose
from gptlab.runs.directory import write_config
from gptlab.runs.resume import stored_config, with_run_dir
from gptlab.system.errors import UserError
from gptlab.system.terminal import single_quoted


def nothing(run_dir: Path) -> None:
    """A reader that finds no checkpoint."""


def chosen(*words: str) -> str | None:
    """The folder that `with_run_dir` adds to the words, as Hydra reads it; None if it adds none."""
    found = with_run_dir([*words], nothing)
    added, rest = found[: len(found) - len(words)], found[len(found) - len(words) :]
    assert rest == [*words]
    if not added:
        return None
    (override,) = OverridesParser.create().parse_overrides(added)
    assert override.key_or_group == "hydra.run.dir"
    return str(override.value())


@pytest.mark.parametrize(
    "name", ["run", "it's mine", "a=b, [c] {d}", "back\\slash", "ends with \\", "\\'both", "zürich"]
)
def test_a_resumed_run_goes_into_its_own_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.yaml").write_text("")
    assert chosen("seed=2", f"resume={single_quoted(str(tmp_path / name))}") == str(tmp_path / name)


def test_other_command_lines_stay_as_they_are(tmp_path: Path) -> None:
    assert chosen("model=gpt1m", "seed=2") is None
    assert chosen(f"resume={tmp_path}") is None  # no run: it is refused later, and leaves nothing there
    assert chosen("resume=null") is None
    assert chosen("resume=[") is None  # for Hydra to refuse
    (tmp_path / "config.yaml").write_text("")
    assert chosen(f"resume={tmp_path}", "hydra.run.dir=elsewhere") is None
    assert chosen(f"resume={tmp_path}", "--cfg", "job") is None
    assert chosen("resume=auto", "--info=config") is None


def test_auto_takes_the_latest_unfinished_run_of_the_same_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=bigram", "trainer=cpu"]
    assert chosen(*words, "resume=auto") is None
    for name, more in (("a", []), ("b", []), ("c", ["seed=7"]), ("d", [])):
        (Path("outputs/bigram") / name).mkdir(parents=True)
        write_config(Path("outputs/bigram") / name / "config.yaml", compose([*words, *more]))
    (Path("outputs/bigram/d") / "summary.json").write_text("{}")  # it has finished
    assert chosen(*words, "resume=auto") == "outputs/bigram/b"
    assert chosen(*words, "resume=auto", "seed=7") == "outputs/bigram/c"
    assert chosen(*words, "resume=auto", "trainer.checkpoint_every=5", "data.dir=there") == "outputs/bigram/b"
    assert chosen(*words, "resume=auto", "optim.lr=0.5") is None


def test_auto_composes_with_choices_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine/optim").mkdir(parents=True)
    Path("mine/optim/sgdlike.yaml").write_text("defaults:\n  - adamw\n\nbeta1: 0.5\n")
    words = ["--config-dir", "mine", "model=bigram", "optim=sgdlike"]
    Path("outputs/bigram/a").mkdir(parents=True)
    write_config(Path("outputs/bigram/a/config.yaml"), compose(words))
    assert compose(words)["optim"]["beta1"] == 0.5
    assert chosen(*words, "resume=auto") == "outputs/bigram/a"


def test_a_broken_config_is_read_from_the_checkpoint_if_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = compose(["model=bigram"])
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml cannot be read"):
        stored_config(tmp_path, nothing)
    found = stored_config(tmp_path, lambda run_dir: (run_dir / "last.ckpt", config))
    assert found["model"] == config["model"]
    assert "The config in" in caplog.text
    assert resume.differing(found, config, "moved") == []
