"""What is published works without the checkout."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from gptlab.generation import c_build
from tests.conftest import ROOT


def test_the_wheel_carries_conf_and_works_from_an_empty_folder(trained: Path, tmp_path: Path) -> None:
    def run(*command: str, **env: str) -> str:
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=os.environ | env, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    build = "from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"import sys; {build}", str(tmp_path)], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("gptlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")  # what installing a pure Python wheel does
    assert sorted(name for name in names if name.endswith(".yaml")) == sorted(
        f"gptlab/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")
    )
    assert "gptlab/generation/c/decoder.c" in names
    assert {"gptlab/formats/html/index.html", "gptlab/formats/html/page.js", "gptlab/serving/server.js"} <= {*names}
    assert not any(name.startswith(("tests", "outputs", "conf/")) for name in names)

    site = {"PYTHONPATH": str(tmp_path / "site")}
    where = run("-c", "import gptlab; print(gptlab.__file__)", **site)
    assert str(tmp_path / "site") in where
    assert "n_embd: 384" in run("-m", "gptlab.train", "model=gpt10m", "--cfg", "job", **site)
    text = run("-m", "gptlab.generate", str(trained), "the", "--max-new-tokens", "5", "--temperature", "0", **site)
    assert len(text.rstrip("\n")) >= len("the")


@pytest.mark.slow
@pytest.mark.skipif(c_build.compiler() is None or not sys.platform.startswith("linux"), reason="no C compiler here")
def test_a_wheel_with_the_library_needs_no_compiler(trained: Path, tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    env = os.environ | {"GPTLAB_WHEEL_LIBRARY": "1"}
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, env=env)
    (wheel,) = tmp_path.glob("gptlab-*.whl")
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as archive:
        libraries = {Path(name).stem for name in archive.namelist() if name.endswith(".so")}
        archive.extractall(tmp_path / "site")
    assert libraries == {level.name for level in c_build.LEVELS[platform.machine()]}
    bare = {"PYTHONPATH": str(tmp_path / "site"), "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = "from gptlab.generation import cpu_decoder; assert cpu_decoder.load_library() is not None"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | bare, check=True)
    line = ["-m", "gptlab.generate", str(trained), "the", "--max-new-tokens", "5", "--precision", "int8"]
    subprocess.run([sys.executable, *line], cwd=tmp_path, env=os.environ | bare, check=True)
    assert not list(tmp_path.rglob("cpu_decoder-*.so"))


def test_the_source_carries_the_tests_with_what_older_versions_wrote(tmp_path: Path) -> None:
    build = "from hatchling.build import build_sdist; print(build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", f"import sys; {build}", str(tmp_path)], cwd=ROOT, check=True)
    (archive,) = tmp_path.glob("gptlab-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    golden = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "golden").iterdir()]
    assert len(golden) > 10
    assert names.issuperset(golden)
