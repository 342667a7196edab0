# `make demo` is the quickest look; `make` alone lists the rest. Every target sets itself up, in $(VENV), once.

VENV ?= .venv
# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 ...` takes another.
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done),no-python-3.11)
ARGS ?=
EXTRAS ?= net

BIN := $(VENV)/bin
# Not compiled: what is imported compiles itself then, and most of what is installed never is.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-split demo-federation demo-wan test soak equivalence check format docs bench bench-setup wheelhouse constraints clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## ?/\1\t/' | expand -t 14

setup: $(VENV)/.core  ## install what a first run needs

demo: $(VENV)/.core  ## train a small GPT on Python's standard library, with 2 workers
	$(BIN)/konvoi train recipes/stdlib_gpt.py --workers 2 $(ARGS)

demo-split: $(VENV)/.dev  ## a model of transformers as dp2 x pp2, resumed as tp4, exported, loaded by transformers
	$(BIN)/python examples/split_anything.py $(ARGS)

demo-federation: $(VENV)/.dev  ## 5 simulated hospitals, then the same recipe as a server and 3 real sites
	$(BIN)/python examples/hospitals.py $(ARGS)

demo-wan: $(VENV)/.dev  ## four islands over a bad network: quiet, and with a kill and a cut (Linux, root)
	$(BIN)/python examples/bad_network.py $(ARGS)

test: $(VENV)/.dev  ## every test but the slow ones (ARGS="tests/job -k text" narrows it)
	$(BIN)/python -m pytest -q -m "not slow and not soak" $(ARGS)

soak: $(VENV)/.dev  ## the slow tests, and those that take hours (ARGS="-m slow": the former alone)
	$(BIN)/python -m pytest -q -m "slow or soak" $(ARGS)

equivalence: $(VENV)/.dev  ## every row of the equivalence table, and docs/equivalence.md from it
	KONVOI_WRITE_TABLE=1 $(BIN)/python -m pytest -q tests/conformance $(ARGS)

check: $(VENV)/.dev  ## lint, format, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev  ## write the generated pages again: docs/api.md, docs/support.md
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_support.py
	$(BIN)/python docs/make_benchmarks.py
	$(BIN)/python docs/make_xray.py

bench: $(VENV)/.dev  ## every benchmark but wan*.py and xray.py, which take hours, or root (ARGS=--quick: a minute each)
	set -e; for benchmark in benchmarks/[!_wx]*.py; do $(BIN)/python $$benchmark --json $(ARGS); done

bench-setup: $(VENV)/.bench $(VENV)/.peers  ## install the peers that the benchmarks compare with

# The wheel by its path: an index may have something else of that name.
wheelhouse: $(BIN)/python  ## every wheel that a site needs, in wheels/ (EXTRAS=net,images,lora: what recipes use there)
	rm -rf wheels
	$(BIN)/python -m pip wheel --no-deps -w wheels .
	$(BIN)/python -m pip download --only-binary :all: -d wheels -c constraints.txt $(ARGS) "$$(ls wheels/konvoi-*.whl)[$(EXTRAS)]"

constraints:  ## pin the newest versions of everything but torch
	rm -rf $(VENV)-fresh
	$(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/python -m pip install "$$(grep '^torch==' constraints.txt)" -e '.[dev,bench]'
	$(VENV)-fresh/bin/python -m pip freeze --all --exclude-editable > $(VENV)-fresh/frozen.txt
	{ grep '^#' constraints.txt; \
	  sed -E '/^(pip|triton|nvidia-[^=]*)==/d; s/^(torch==[^+]*)\+.*/\1/' $(VENV)-fresh/frozen.txt | LC_ALL=C sort -f; \
	} > $(VENV)-fresh/constraints.txt
	mv $(VENV)-fresh/constraints.txt constraints.txt
	rm -rf $(VENV)-fresh

clean:  ## remove builds and caches; the environment and runs/ stay
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests docs benchmarks recipes examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# One thread for each process: the tests start several workers on few cores, and sums keep their order.
test soak: export OMP_NUM_THREADS = 1

$(BIN)/python:
	@$(PYTHON) -c 'import venv, ensurepip' || { \
	  echo "Konvoi needs Python 3.11 or newer with its venv module (Debian: python3-venv); set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.core $@

$(VENV)/.bench: $(VENV)/.dev
	$(INSTALL) -e '.[bench]'
	@touch $@

# An environment beside the other: Flower wants other versions of what konvoi wants, too. Compiled, as each of its actors
# imports it, and the figures are of its rounds.
$(VENV)/.peers: benchmarks/peers/requirements.txt constraints.txt | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/peers
	$(VENV)/peers/bin/python -m pip install --disable-pip-version-check \
	  $$(grep -E '^(torch|numpy)==' constraints.txt) -r benchmarks/peers/requirements.txt
	@touch $@
