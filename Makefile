# Every target sets itself up. Another Python: make PYTHON=python3.12 train. More arguments: make train ARGS="model=gpt1m".
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DEV := .venv/.dev-ready
ARGS ?=
# pip leaves the compiling of bytecode to the first import; uv, where it is installed, needs seconds for all of it.
INSTALL = $(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,\
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile) -c constraints.txt
ABOUT = $(if $(shell command -v uv),seconds with uv,a minute or two by pip and seconds by uv)

# Images set it, and then every command compiles torch and Lightning anew, which takes ten seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help install train test test-all coverage torture bench gpu-bench picture lessons lint format board clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 15) or sys.exit("gptlab needs Python 3.10 to 3.15, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v)'
	@echo "setting up .venv with what training needs, once: $(ABOUT)"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e .
	@echo "compiling what a run imports"
	@$(BIN)/python -c 'from gptlab.training import lightning_setup as s; s.import_lightning(); import gptlab.training.fit'
	@touch $@

$(DEV): $(READY)
	@echo "adding the tools for tests and checks to .venv, once: $(ABOUT)"
	@$(INSTALL) -e '.[dev]'
	@touch $@

install: $(DEV) ## set up .venv with the pinned versions of everything

train: $(READY) ## a minute of training on real text (ARGS="model=gpt1m" and the like train another model)
	$(BIN)/python -m gptlab.train $(or $(ARGS),experiment=first)

test: $(DEV) ## the tests, about eight minutes on two cores
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-all: $(DEV) ## the slow tests too
	$(BIN)/python -m pytest -m '' $(ARGS)

coverage: $(DEV) ## which lines the tests run, those of the processes that they start among them
	$(BIN)/python -m pytest -n auto --dist loadfile --cov=gptlab --cov-report=term:skip-covered $(ARGS)

torture: $(DEV) ## kill a run 200 times, resume it, compare it with an untouched one
	$(BIN)/python -m tests.training.torture --kills 200 --fresh 5 $(ARGS)

bench: $(READY) ## how fast the default run is here, beside the plain loop (ARGS="..." for another)
	$(BIN)/python -m gptlab.bench --against loop $(ARGS)

gpu-bench: $(READY) ## all that is measured of a GPU, in under ten minutes, into outputs/gpu-bench.json
	$(BIN)/python -m gptlab.benchmarks.gpu $(ARGS)

picture: $(READY) ## draw the README's picture from the recorded runs (ARGS=--record makes the runs first)
	$(BIN)/python -m gptlab.benchmarks.picture $(ARGS)

lessons: $(READY) ## run every command of docs/lessons and compare the numbers, a quarter of an hour (ARGS=4: one chapter)
	$(BIN)/python -m gptlab.lesson $(or $(ARGS),all)

lint: $(DEV) ## ruff and mypy: the same checks as the pre-commit hooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## put the code into ruff's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

board: $(READY) ## TensorBoard over everything in outputs/
	$(BIN)/tensorboard --logdir outputs

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
