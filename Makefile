# What needs more than a line is Python's business: `python -m labkit --help`.
PYTHON  ?= python3
PORT    ?=
TO      ?= learner
BROWSER ?= default
KILLS   ?= 100
MINUTES ?= 60
VENV    := .venv
RUN     := $(VENV)/bin/python -m
READY   := $(VENV)/ready
QUICK   := not claims and not soak

# Bytecode is kept, whatever the environment says: else each of many processes compiles torch anew, for ten seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help lab release book slides test claims soak check notebooks bench

help:  ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: $(READY)  ## open the lessons in JupyterLab (PORT=8888 BROWSER=none)
	@$(RUN) labkit lab --browser=$(BROWSER) $(if $(PORT),--port=$(PORT))

release: $(READY)  ## write the learner's copy of the lessons, without solutions and results (TO=learner)
	@$(RUN) labkit release $(TO)

book: $(READY)  ## write the lessons as static pages, to be read and printed, into the folder book
	@$(RUN) labkit book book

slides: $(READY)  ## write the lessons as slides, which need no network, into the folder slides
	@$(RUN) labkit slides slides

test: $(READY)  ## run every test, notebooks and browser included; all three parts, whatever fails in one
	@failed=0; trap "exit 130" INT; set -x; \
	$(RUN) pytest -m "not alone and not paired and $(QUICK)" -n auto --dist worksteal --durations=40 || failed=1; \
	$(RUN) pytest -m "paired and $(QUICK)" -n 2 --dist loadfile --no-loadscope-reorder --durations=40 || failed=1; \
	$(RUN) pytest -m "alone and $(QUICK)" --durations=40 || failed=1; \
	exit $$failed

claims: $(READY)  ## what each algorithm is for, shown over many seeds: minutes
	$(RUN) pytest -m claims -n auto --dist worksteal

soak: $(READY)  ## kills at random moments, and mixed work for long (KILLS=100 MINUTES=60)
	$(RUN) pytest -s -m soak --kills=$(KILLS) --minutes=$(MINUTES)

check: $(READY)  ## format, lint, types, import layers, short files, lessons as saved: seconds
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) mypy
	$(RUN) pytest -q tests/test_layers.py tests/test_repository.py
	$(RUN) tests.lessons --check

notebooks: $(READY)  ## execute every lesson and save its outputs
	$(RUN) tests.lessons

bench: $(READY)  ## run the benchmarks
	$(RUN) tests.benchmarks

# To change the Python of an environment that exists: rm -r .venv, then make lab PYTHON=python3.13
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "labkit needs Python 3.11 or newer: add PYTHON=python3.12")'
	@echo "Installing labkit into $(VENV): minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[test,dev]'
	@touch $@
