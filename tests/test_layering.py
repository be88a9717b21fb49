"""The rooms of the house: who may import whom, and who may load which library."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptlab"
# A room, and the rooms that it may import. The verbs, gptlab/*.py, may import any room, and never each other.
ROOMS: dict[str, set[str]] = {
    "system": set(),
    "models": {"system"},
    "data": {"system"},
    "runs": {"system"},
    "formats": {"system", "models", "data", "runs"},
    "distributed": {"system", "models"},
    "generation": {"system", "models", "data", "formats"},
    "serving": {"system", "models", "data", "formats", "generation"},
    "evaluation": {"system", "models", "data", "formats", "generation"},
    "explaining": {"system", "models", "data", "formats", "generation", "evaluation"},
    "alignment": {"system", "models", "data", "generation", "evaluation"},
    "training": {"system", "models", "data", "runs", "formats", "distributed", "generation", "evaluation", "alignment"},
    "sweeps": {"system", "runs"},
    "reports": {"system", "runs"},
    "benchmarks": {"system", "models", "data", "runs", "formats", "generation", "training", "reports"},
    "lessons": {"system", "models", "data", "runs", "formats", "generation", "evaluation", "reports"},
}
# A library that is heavy or characteristic, and the rooms and files that may load it.
LIBRARIES: dict[str, set[str]] = {
    "torch": {"models", "formats", "distributed", "generation", "evaluation", "alignment", "training", "benchmarks"}
    | {"explaining", "lessons"}
    | {"system/accelerator.py", "data/batches.py", "data/chat/batches.py", "evaluate.py"},
    "lightning": {"training", "distributed/strategies.py", "benchmarks/measured_run.py"},
    "hydra": {"train.py", "runs/compose.py", "runs/hydra_parser.py", "runs/resume.py", "runs/words.py"}
    | {"sweeps/command_line.py"},
    "omegaconf": {"train.py", "runs", "training/settings.py", "sweeps/command_line.py"},
    "jinja2": {"data/chat/template.py"},
    "pandas": {"reports"},
    "scipy": {"reports/statistics.py"},
    "matplotlib": {"reports/plots", "benchmarks/picture.py", "explaining/pictures.py", "lessons"},
    "optuna": {"sweeps/plans.py"},
    "submitit": {"sweeps/launchers.py"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "safetensors": {"formats"},
    "huggingface_hub": {"formats/huggingface.py"},
    "tensorflow": {"formats/openai_gpt2.py"},
    "transformers": {"benchmarks/generation_peers.py"},
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """gptlab/models/gpt.py -> models; gptlab/train.py -> "" for a verb."""
    *folders, _ = path.relative_to(PACKAGE).parts
    return folders[0] if folders else ""


def test_every_folder_is_a_room() -> None:
    assert {room(path) for path in FILES} == {"", *ROOMS}


def test_no_two_rooms_may_import_each_other() -> None:
    above: list[str] = []
    for name, below in ROOMS.items():
        assert below <= {*above}, f"{name} may import a room that stands after it"
        above.append(name)


@pytest.mark.parametrize(
    "path", [path for path in FILES if room(path)], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_room_imports_the_rooms_below_it_only(path: Path) -> None:
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "gptlab" and rest != "__version__":
            assert rest.split(".")[0] in {room(path), *ROOMS[room(path)]}, f"{path.name} imports {name}"


def test_libraries_stay_where_they_belong() -> None:
    for path in FILES:
        used = {name.split(".")[0] for name in imports(path)}
        for library, allowed in LIBRARIES.items():
            there = {room(path), str(path.relative_to(PACKAGE)), str(path.relative_to(PACKAGE).parent)}
            assert library not in used or there & allowed, f"{path} imports {library}"


def test_an_init_is_a_docstring() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent.name in ("gptlab", "models", "tokenizers"):
            continue
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


def test_functions_and_modules_stay_small() -> None:
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


def test_the_architecture_shows_the_imports_as_they_are() -> None:
    from tests.import_graph import lines

    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    block = page.partition("<!-- imports: begin -->")[2].partition("<!-- imports: end -->")[0]
    assert block.split("```")[1].strip().splitlines() == lines(), "put there what python -m tests.import_graph prints"
