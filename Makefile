# Two commands set everything up: `make repro` runs the pipeline, `make test` the checks and tests.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Many processes start: each would compile all that it imports anew (2.5 s for torch).
unexport PYTHONDONTWRITEBYTECODE
UV_VERSION := 0.13.9

.PHONY: help install repro test check torture bench image image-test lock clean

help:
	@echo "make repro    set up .venv and run the pipeline (dvc repro), then print the table"
	@echo "make test     set up .venv, lint, type-check, test"
	@echo "make check    lint and type-check alone"
	@echo "make torture  kill every stage at random moments, compare what comes out (TORTURE='--kills 50 --seed 0')"
	@echo "make bench    time a training step beside other implementations (docs/performance.md)"
	@echo "make image    docker build --tag mlnt ."
	@echo "make image-test  build the image and run it in every documented way (docs/container.md)"
	@echo "make install  set up .venv alone"
	@echo "make lock     write requirements.lock and requirements-dev.lock anew from pyproject.toml"
	@echo "make clean    remove .venv and caches (data, models and results stay)"

install: .venv/installed

# Made anew whenever the lock file or the metadata change. uv installs the hashed lock in a tenth of pip's time.
.venv/installed: requirements.lock requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); expected Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

repro: install
	dvc repro
	@python -m pipeline show

check: install
	ruff check .
	ruff format --check .
	mypy
	hadolint Dockerfile
	shellcheck container/*.sh .ci/run

# One more than there are cores: the tests of sweeps wait much of the time. Files in the order of pyproject.toml's
# testpaths, the long ones first: xdist would begin those of one long test last.
JOBS := $(shell expr $$(nproc) + 1)
test: check
	python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

TORTURE =
torture: install
	python tests/support/torture.py $(TORTURE)

BENCH =
bench: install
	python bench/speed/step.py $(BENCH)

image:
	DOCKER_BUILDKIT=1 docker build --tag mlnt .

IMAGE_TEST =
image-test: install
	python -m pytest tests/image --verbose --durations=0 $(IMAGE_TEST)

# What runs, and so goes into the image, apart from what only tests and lints.
LOCK = UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --upgrade
lock:
	$(LOCK) pyproject.toml --output-file requirements.lock
	$(LOCK) --group dev --constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
