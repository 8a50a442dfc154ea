# make repro: from a fresh clone to a trained, evaluated model.   make test: lint, types and tests.
# make verify: the committed figures again, from the committed revision.
PYTHON ?= python3
VENV := .venv
# Packages' own tests, and those of transformers' hundreds of models that nothing here uses.
UNCOMPILED := /(tests?|transformers/models/(?!(auto|bert|bit|bloom|dinov2|siglip|vit)/).*)/
WORKERS := $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
# DVC starts the stages through the shell: the environment must be on PATH for them too.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: setup repro verify test lint style types pytest lock

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("knee-siglip needs Python >= 3.11, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	xargs -P 2 -n 36 $(VENV)/bin/pip install --quiet --no-compile --no-deps < requirements.lock   # pip unpacks on one core only
	$(VENV)/bin/pip install --quiet --no-compile --requirement requirements.lock   # what these need beside each other
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python -m compileall -qq -j 0 -x '$(UNCOMPILED)' $(VENV)/lib || true   # and compiles on one core only
	touch $@

repro: setup
	$(VENV)/bin/dvc repro

# A fresh clone of HEAD, run to its end: are the headline metrics the committed ones, to the last digit?
verify: setup
	$(VENV)/bin/python benchmarks/verify.py

lint: style types

style: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: setup
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# Types beside the tests: each mostly waits for one core.
test: style
	$(MAKE) --no-print-directory --jobs 2 types pytest

# A file's tests stay together: they share what its fixtures make. The longest come first (tests/conftest.py). One thread each, since
# the processes fill the cores: one more than there are, because tests of processes mostly wait for them. The many processes that
# tests start must find this package compiled.
pytest: setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Resolve pyproject.toml anew. The CPU build's local version is cut off, so that the pin also fits the CUDA build.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet '.[dev]'
	build/lock/bin/pip freeze --exclude knee-siglip | sed 's/+cpu$$//' | grep -viE '^(nvidia-|cuda-|triton)' > requirements.lock
