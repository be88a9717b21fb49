"""Imports go strictly down; the README's picture of the house is true."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "gptlab"
# From the bottom up; a module may import from lower rows only, models from their own row's files.
ROWS = [
    {"errors"},
    {"files", "texts", "schema", "upgrades", "processes", "muon", "lightly"},
    {"tokenizers", "corpora", "shards", "models", "optim", "metrics"},
    {"prepare", "dataset", "checkpoint", "sampling", "hf_tokenizers", "ngrams", "streams", "sharding"},
    {"module", "datamodule", "loggers", "page", "pretrained", "evaluation", "sources", "memorisation"},
    {"loading"},
    {"init_from"},
    {"config", "runs", "faults", "diagnostics", "references", "strategies", "averaging", "hooks"},
    {"resuming", "devices", "turns"},
    {"saving"},
    {"callbacks", "plainloop"},
    {"fit", "records", "jobs", "cards"},
    {"launchers", "plans", "results", "measuring"},
    {"sweeps", "plots", "tables"},
    {"multirun"},
    {"train", "generate", "evaluate", "export", "tokenize", "report"},
    {"bench"},
    {"cli"},
]
LIBRARIES = {  # who may import the heavy or characteristic ones
    "lightning": {"module", "datamodule", "loggers", "callbacks", "diagnostics", "fit"}
    | {"faults", "saving", "strategies", "averaging", "measuring", "hooks", "lightly"},
    "hydra": {"train", "multirun"},
    "omegaconf": {"config", "schema", "train", "multirun", "bench"},
    "pandas": {"records", "results", "tables", "plots"},
    "scipy": {"results"},
    "matplotlib": {"plots"},
    "optuna": {"plans"},
    "submitit": {"launchers"},
    "torch": {"models", "optim", "metrics", "dataset", "checkpoint", "sampling", "module", "datamodule", "loggers"}
    | {"config", "callbacks", "diagnostics", "fit", "generate", "pretrained", "evaluation", "memorisation", "evaluate"}
    | {"export", "loading", "faults", "saving", "processes", "sharding", "strategies"}
    | {"resuming", "devices", "muon", "averaging", "turns", "plainloop", "measuring"},
    "safetensors": {"pretrained", "export"},
    "huggingface_hub": {"pretrained"},
    "tensorflow": {"pretrained"},
    "tensorboard": set(),
}


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


def module(path: Path) -> str:
    """gptlab/models/gpt.py -> models."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_every_module_has_its_row() -> None:
    assert {module(path) for path in FILES} == set().union(*ROWS)


def test_imports_go_strictly_down() -> None:
    level = {name: row for row, names in enumerate(ROWS) for name in names}
    for path in FILES:
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "gptlab" or parts[1] == "__version__":
                continue
            if module(path) == parts[1] == "models":
                continue
            assert level[parts[1]] < level[module(path)], f"{path.name} imports {name}"


def test_libraries_stay_where_they_belong() -> None:
    for path in FILES:
        used = {name.split(".")[0] for name in imports(path)}
        for library, allowed in LIBRARIES.items():
            assert library not in used or module(path) in allowed, f"{path.name} imports {library}"


def test_the_core_stays_small() -> None:
    def lines(*names: str) -> int:
        return sum(len((PACKAGE / name).read_text().splitlines()) for name in names)

    assert lines("models/gpt.py", "models/layers.py") < 400
    assert lines("module.py") < 250


def test_the_readme_names_every_module() -> None:
    tree = (PACKAGE.parent / "README.md").read_text().partition("## The house")[2].split("```")[1]
    for path in FILES:
        assert path.name in tree, f"README.md's tree does not show {path.name}"
