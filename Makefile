# make repro: from a fresh clone to a trained, evaluated model.   make test: lint, types and tests.
# make verify: the committed figures again, from the committed revision.
PYTHON ?= python3
VENV := .venv
# DVC starts the stages through the shell: the environment must be on PATH for them too.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup repro verify test lint lock

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("knee-siglip needs Python >= 3.11, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --editable .
	touch $@

repro: setup
	$(VENV)/bin/dvc repro

# A fresh clone of HEAD, run to its end: are the headline metrics the committed ones, to the last digit?
verify: setup
	$(VENV)/bin/python benchmarks/verify.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# A file's tests stay together: they share what its fixtures make. The longest come first (tests/conftest.py). One thread each, since the processes fill the cores.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# Resolve pyproject.toml anew. The CPU build's local version is cut off, so that the pin also fits the CUDA build.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet '.[dev]'
	build/lock/bin/pip freeze --exclude knee-siglip | sed 's/+cpu$$//' | grep -viE '^(nvidia-|cuda-|triton)' > requirements.lock
