# Every target makes the virtual environment it needs. Nothing but Python >= 3.11, pip, make and git is assumed.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench clean

demo: .venv/base  ## the whole life of a small model, six to eleven minutes on two cores
	$(BIN)/llmlab run demo --out runs/demo --resume

test: .venv/dev  ## the whole test suite
	$(BIN)/python -m pytest

check: .venv/dev  ## style, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: .venv-bench/ready  ## each claim against its peer, in one run
	for script in $$(grep -l __main__ benchmarks/*.py); do .venv-bench/bin/python $$script --json || exit 1; done

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[serving]'
	touch $@

.venv/dev: .venv/base
	$(PIP) --editable '.[dev]'
	touch $@

.venv-bench/ready: pyproject.toml constraints.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv .venv-bench build runs
