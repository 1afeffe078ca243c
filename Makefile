# `make demo` and `make test` work on a bare machine with Python 3.11 or newer, pip, gcc and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
# One thread per test process; everything else uses at most two, which is what the bases are sized for.
THREADS ?= 2

.PHONY: help setup test slow demo check bench clean

help:
	@echo "make demo    generate, caption, edit and answer; writes demo.html"
	@echo "make test    the fast tests"
	@echo "make slow    the slow tests"
	@echo "make check   ruff and mypy"
	@echo "make bench   the benchmarks"

setup: $(READY)

# The stamp is newer than what decides the environment, so the second time costs nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: showtell needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@# Some systems ship Python without ensurepip: then pip installs itself into the environment.
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(BIN)/python install -q pip
	@echo "installing showtell into $(VENV) (minutes the first time)"
	@$(BIN)/python -m pip install -q -c constraints.txt torch
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@$(MAKE) --no-print-directory font
	@touch $@

# The colour-emoji world draws from Noto Color Emoji; without the font everything else still works.
.PHONY: font
font:
	@if ! find /usr/share/fonts /usr/local/share/fonts ~/.fonts ~/.local/share/fonts -name 'NotoColorEmoji*' 2>/dev/null | grep -q . \
	&& command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get install -y fonts-noto-color-emoji || { apt-get update && apt-get install -y fonts-noto-color-emoji; }; } >/dev/null 2>&1 || true; \
	fi

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

demo: $(READY)
	@OMP_NUM_THREADS=$(THREADS) $(BIN)/showtell demo -o demo.html

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@set -e; shopt -s nullglob; files=(benchmarks/*.py); \
	[ $${#files[@]} -gt 0 ] || { echo "error: there are no benchmarks in benchmarks/" >&2; exit 2; }; \
	for file in "$${files[@]}"; do echo "== $$file"; OMP_NUM_THREADS=$(THREADS) $(BIN)/python "$$file"; done

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache demo.html
