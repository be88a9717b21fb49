#!/usr/bin/env bash
# hatchling 1.33.0: an extra may name other extras of its own project, and hatchling writes their packages in its place;
# it drops the marker that stood behind. `dev = ["demo[onnx]; python_version < '3.0'"]` asks every Python for onnx's
# packages. setuptools keeps the line, marker and all, and pip obeys it.
#
# Seen on 2026-11-28, Python 3.11:
#   hatchling 1.33.0:   Requires-Dist: six; extra == 'dev'
#   setuptools 81.0.0:  Requires-Dist: demo[onnx]; python_version < "3.0" and extra == "dev"
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check build==1.6.1 hatchling==1.33.0 setuptools==81.0.0
for backend in hatchling.build setuptools.build_meta; do
    rm -rf demo && mkdir demo && echo > demo/demo.py
    cat > demo/pyproject.toml <<TOML
[build-system]
requires = []
build-backend = "$backend"
[project]
name = "demo"
version = "1"
[project.optional-dependencies]
onnx = ["six"]
dev = ["demo[onnx]; python_version < '3.0'"]
[tool.setuptools]
py-modules = ["demo"]
[tool.hatch.build.targets.wheel]
only-include = ["demo.py"]
TOML
    venv/bin/python -m build --wheel --no-isolation demo > log 2>&1 || { cat log; exit 1; }
    unzip -p demo/dist/*.whl '*/METADATA' | grep 'Requires-Dist' | grep dev | tee "$backend"
done
grep -q "^Requires-Dist: six; extra == 'dev'$" hatchling.build
grep -q 'python_version < "3.0"' setuptools.build_meta
echo "as stated"
