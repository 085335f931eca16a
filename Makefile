# make run    the load balancer over demo servers, on loopback
# make test   the whole test suite
# make compiled       a copy of all this in build/compiled with the hot modules and the C module compiled
# make test-compiled  the tests on that copy
# make lint   ruff;  make types   mypy --strict
# make bench  lb side by side with nginx and HAProxy, where these are installed; see docs/performance.md
# Each makes what it needs first, in .venv, and is quick when that is there.
# ARGS are handed on: make test ARGS="tests/unit -k balance"; JOBS=1 runs one test at a time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
# Most tests wait for processes, so more of them than cores run at a time.
JOBS ?= 4

COMPILED := build/compiled
SOURCES := lb tests config docs grafana setup.py pyproject.toml MANIFEST.in Makefile *.md LICENSE .ci .gitignore

.DEFAULT_GOAL := help
.PHONY: help run test compiled test-compiled lint types bench clean

help:
	@sed -n 's/^# //p' Makefile

run: $(VENV)/.stamp-run
	@exec $(BIN)/lb demo -c config/lb.toml $(ARGS)

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

compiled: $(VENV)/.stamp-test
	@mkdir -p $(COMPILED) build/sources
	@cd $(COMPILED) && rm -rf lb tests
	@cp -r $(SOURCES) $(COMPILED)
	@# The sources as they are now, whoever edits meanwhile; compiled where they are not those of last time.
	@rm -rf build/sources/workers && cp -r workers build/sources
	@sum=$$({ cd build/sources && find workers -name '*.py' -o -name '*.c' | LC_ALL=C sort | xargs sha256sum && cd ../.. && \
		cat setup.py pyproject.toml && $(BIN)/python -VV && $(BIN)/mypy --version; } | sha256sum) && \
	if [ "$$sum" != "$$(cat $(COMPILED)/.compiled 2>/dev/null)" ]; then \
		cd $(COMPILED) && rm -rf .compiled workers build && mv ../sources/workers . && \
		LB_COMPILED=1 $(abspath $(BIN))/python -W ignore setup.py --quiet build_ext --inplace && echo "$$sum" > .compiled; \
	fi
	@# As pip does: without byte code a start takes 330 ms instead of 190.
	@cd $(COMPILED) && $(abspath $(BIN))/python -m compileall -q lb workers

test-compiled: compiled
	cd $(COMPILED) && $(abspath $(BIN))/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-test
	$(BIN)/mypy

bench: $(VENV)/.stamp-test
	@$(MAKE) --no-print-directory compiled || echo "no C compiler? then lb is measured as it is interpreted" >&2
	@$(BIN)/python -m tests.bench.compiled || echo "the load is driven by an interpreted generator" >&2
	@$(BIN)/python -m tests.bench --code $(COMPILED) $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-venv pyproject.toml
	@echo "installing into $(VENV)"
	@$(PIP) install -e .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv pyproject.toml
	@echo "installing with the tools for tests into $(VENV)"
	@$(PIP) install -e '.[test,lint]'
	@touch $@ $(VENV)/.stamp-run
