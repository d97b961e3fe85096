# Two commands set everything up on a machine with Python 3.10+, git and make:
#   make demo   installs (with DALI on Linux) and trains a ResNet-50 on the built-in demo set
#   make test   installs and runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check slow clean

demo: $(VENV)/.installed
	$(BIN)/torchrun -m fastcnn.train --arch resnet50

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

# What CI runs beside the tests.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow and not gpu"

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("fastcnn needs Python 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dali]"
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -e ".[dali,test]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install -e ".[dali,dev]"
	touch $@
