# Two commands on a fresh machine: `make demo` and `make test`. The others are for those who change the code.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two test processes on two cores: torch must not start two threads in each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo test test-slow test-exhaustive coverage mutation check format lock wheel clean

help:           ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo   ## Train MTL-Net on embedded real data, on this machine's CPU, and write a report
	$(BIN)/python -m mtl_cloud submit jobs/quickstart.yaml
	$(BIN)/python -m mtl_cloud metrics latest
	$(BIN)/python -m mtl_cloud report latest -o demo-report.html

test: $(VENV)/.dev    ## Run the fast tests (minutes)
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not exhaustive"

test-slow: $(VENV)/.dev ## Run the tests that take longer
	$(PYTEST) -n 2 --dist worksteal -m slow

test-exhaustive: $(VENV)/.dev ## Run all tests with many repetitions, before a release (hours)
	MTL_CLOUD_TESTS=exhaustive $(PYTEST) -n 2 --dist worksteal

coverage: $(VENV)/.dev ## Run the tests, and list what they leave out of the packages that keep runs alive
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not exhaustive" --cov --cov-report=
	$(BIN)/python -m coverage report --include='mtl_cloud/launch/*,mtl_cloud/runs/*,mtl_cloud/supervise/*'

mutation: $(VENV)/.dev ## Mutate the fence, the budget and the failure policy, and list the mutants that no test notices
	$(BIN)/python -m pip install --quiet --editable ".[mutation]"
	rm -rf mutants
	CI=1 OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run \
	  'mtl_cloud.runs.*' 'mtl_cloud.supervise.failure_policy.*' '*DeadlineWatcher*' '*_limits*'
	$(BIN)/python -m mutmut results | grep -v 'not checked' || true

check: $(VENV)/.dev   ## Style, types, import contracts, the image's recipe, shell scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/make-base docker/make-lock .ci/run

format: $(VENV)/.dev  ## Let the formatter and the safe fixes run
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.dev    ## Lock what the image installs, and list its licences (UPGRADE=--upgrade: the newest versions)
	PATH="$(CURDIR)/$(BIN):$$PATH" docker/make-lock docker/requirements.lock $(UPGRADE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docker/licences.py

wheel: $(VENV)/.dev   ## Build the wheel into dist/
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:          ## Remove what the other targets made
	rm -rf $(VENV) build dist demo-report.html .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage mutants

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[train,report]"
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.demo
