# One command each: demo (the main job), test, check (format, lint, types), bench.
# Each makes .venv and installs what it needs on the first call, and again when pyproject.toml changes.

SHELL := /bin/bash
# The first interpreter that runs and is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check bench install

demo: install
	$(BIN)/python -m diff_oracle.train +task=logit_lens run_dir=runs/demo

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# A benchmark prints one JSON object; a failed one leaves the last result in place.
bench: install
	@mkdir -p results
	@for file in $(wildcard benchmarks/*.py); do \
		name=$$(basename $$file .py); \
		echo "$$file -> results/bench_$$name.json"; \
		out=$$($(BIN)/python $$file) || exit 1; \
		printf '%s\n' "$$out" > results/bench_$$name.json; \
	done

install: $(INSTALLED)

# Some systems ship Python without ensurepip: there the system's pip puts pip into the environment.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11-3.13 found: install one, or add PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv 2>/dev/null \
		|| { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,gguf]'
	@touch $@
