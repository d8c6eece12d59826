# make demo: install and train on handwritten digits.  make test: the tests, test-slow: those at full size.  make check: lint, types, structure.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check

demo: .venv/installed
	$(BIN)/perceivers demo

test: .venv/installed
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pytest -m slow

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,vision,dev]'
	touch $@
