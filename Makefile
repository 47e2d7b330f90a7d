# Two commands: `make app` opens the workbench, `make test` proves it. Both set a bare machine up first
# (python3 >= 3.11, pip, git and make are enough). The rest is below; `make help` lists it.

PYTHON ?= python3
BIN := .venv/bin
INPUTS := pyproject.toml constraints.txt .ci/setup.py
# Pinned threads: spinning OpenMP threads slow shared cores down by a factor of ten.
RUN := env GOMP_SPINCOUNT=0 OMP_NUM_THREADS=1 PYTHONUTF8=1 PATH="$(CURDIR)/$(BIN):$$PATH"
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help app setup test test-all lint format bench screenshots zoo audit clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

app: .venv/.ready-app ## set up and open the workbench (ARGS='--port 8060 --models DIR')
	@$(BIN)/interp app $(ARGS)

setup: .venv/.ready-test ## set up what the tests and benchmarks need, and do no more

test: .venv/.ready-test lint ## set up, lint, and run the tests (under 25 minutes on two cores)
	@$(RUN) pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-all: .venv/.ready-test lint ## everything: also all notebooks, load, Ray, slow studies
	@$(BIN)/python .ci/setup.py ray
	@$(RUN) pytest -n $(WORKERS) --dist worksteal -m "" $(ARGS)

lint: .venv/.ready-test ## ruff, format, floors and doors, types
	@$(RUN) ruff check .
	@$(RUN) ruff format --check --quiet . || { echo "Some files are not formatted: run 'make format'."; exit 1; }
	@$(RUN) lint-imports
	@$(RUN) pyright

format: .venv/.ready-test ## mend what ruff can mend
	@$(RUN) ruff check --fix --quiet . || true
	@$(RUN) ruff format .

bench: .venv/.ready-test ## every benchmark beside the other tools; results in benchmarks/results/
	@$(BIN)/interp bench $(if $(ARGS),$(ARGS),all)

screenshots: .venv/.ready-test ## take the pictures of README and docs again
	@$(BIN)/python docs/screenshots.py $(ARGS)

zoo: .venv/.ready-test ## train the shipped models again and say whether they agree with what ships (ARGS=NAME)
	@$(BIN)/python -m interp.training $(if $(ARGS),$(ARGS),all) --check

audit: .venv/.ready-test ## known holes in the pinned packages (needs the network)
	@$(BIN)/pip install --quiet pip-audit -c constraints.txt
	@$(BIN)/pip-audit --skip-editable --progress-spinner off

clean: ## remove what the tools left, .venv included
	@rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready-app: $(INPUTS)
	@$(PYTHON) .ci/setup.py app

.venv/.ready-test: $(INPUTS)
	@$(PYTHON) .ci/setup.py test
