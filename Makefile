# Two commands set everything up on a machine with Python 3.10+, git and make:
#   make demo   installs (with DALI on Linux) and trains a ResNet-50 on the built-in demo set
#   make test   installs and runs the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes, of up to 2 GB each: one more than two cores, as many tests wait for processes that they started.
# Files stay whole, since tests of a file share what takes long to make.
JOBS ?= 3
FLAGS :=
# Each process would compile all files anew without byte code.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FLAGS)
PARALLEL := -n $(JOBS) --dist loadfile
TIMED := $(shell grep -rl "pytest.mark.timing" tests --include="test_*.py")

.PHONY: demo test check slow faults gates clean

demo: $(VENV)/.installed
	$(BIN)/torchrun -m fastcnn.train --arch resnet50

test: $(VENV)/.installed-test
	$(PYTEST) $(PARALLEL) -m "not slow and not gpu and not timing and not faults"; status=$$?; \
	$(PYTEST) -m "timing and not slow and not gpu and not faults" $(TIMED) && exit $$status

# What CI runs beside the tests.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

slow: $(VENV)/.installed-test
	$(PYTEST) $(PARALLEL) --no-loadscope-reorder -m "slow and not gpu and not timing and not gate and not faults"
	$(PYTEST) -m "slow and timing and not gpu and not gate" $(TIMED) || [ $$? -eq 5 ]  # 5: there is none

# Broken disks, processes and networks, as root; in namespaces of its own, which end with it.
faults: $(VENV)/.installed-test
	$(PYTEST) -m faults

# Counts, speed and generated pages against the files in the repository; a gate that is skipped fails.
gates: $(VENV)/.installed-test
	$(PYTEST) -m "gate and not gpu"

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
