"""A run's start: it takes no library that it does not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_a_run_imports_nothing_that_it_does_not_use(tmp_path: Path, shell: Any) -> None:
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 40)
    code = (
        "import sys; from gptlab import train; train.main()\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    words = ["data=text", "data.path=text.txt", "data.cache_dir=cache", "hydra.run.dir=run", "trainer.max_steps=1"]
    small = ["model.n_layer=1", "model.n_head=2", "model.n_embd=8", "model.block_size=8", "data.batch_size=2"]
    process = shell("-W", "error", "-c", code, *words, *small)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert (tmp_path / "run" / "summary.json").exists()
    imported = set(err.splitlines()[-1].split())
    assert "lightning" in imported
    assert not imported & {"scipy", "matplotlib", "transformers", "pandas", "torchvision"}
