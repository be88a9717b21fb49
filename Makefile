# Every target sets itself up. Another Python: make PYTHON=python3.12 train. More arguments: make train ARGS="model=gpt1m".
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

.PHONY: help install train test test-all torture bench gpu-bench lint format board clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("gptlab needs Python 3.10 to 3.13, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## set up .venv with the pinned versions

train: $(READY) ## train the default model on real text (ARGS="..." for more)
	$(BIN)/python -m gptlab.train $(ARGS)

test: $(READY) ## the tests, about ten minutes on two cores
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-all: $(READY) ## the slow tests too
	$(BIN)/python -m pytest -m '' $(ARGS)

torture: $(READY) ## kill a run 200 times, resume it, compare it with an untouched one
	$(BIN)/python -m tests.training.torture --kills 200 --fresh 5 $(ARGS)

bench: $(READY) ## how fast the default run is here, beside the plain loop (ARGS="..." for another)
	$(BIN)/python -m gptlab.bench --against loop $(ARGS)

gpu-bench: $(READY) ## all that is measured of a GPU, in under ten minutes, into outputs/gpu-bench.json
	$(BIN)/python -m gptlab.benchmarks.gpu $(ARGS)

lint: $(READY) ## ruff and mypy: the same checks as the pre-commit hooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## put the code into ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

board: $(READY) ## TensorBoard over everything in outputs/
	$(BIN)/tensorboard --logdir outputs

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
