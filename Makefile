# Everything sets itself up: the environment is made in .venv from uv.lock, and made again when it changes.
# `make PYTHON=python3.13 test` picks the interpreter; else the one in .venv stays, and a new
# .venv takes the first on PATH that is new enough.

UV_VERSION := 0.13.8
TOOLS := .tools/uv-$(UV_VERSION)
PYTHON ?=
BIN := .venv/bin
# Empty when uv is not on PATH: a private one is then installed in .tools.
SYSTEM_UV := $(shell command -v uv 2>/dev/null)
UV := $(or $(SYSTEM_UV),$(TOOLS)/bin/uv)
SYNC := $(UV) sync --quiet --frozen --all-extras $(if $(PYTHON),--python $(PYTHON))
# Its name holds the interpreter, so that another one makes the environment again.
STAMP := .venv/.synced-$(or $(notdir $(PYTHON)),default)

# The machine's own certificates, as pip does: a company's proxy may sign with its own.
export UV_SYSTEM_CERTS := true
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON_PREFERENCE := system
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help venv test lint format demo dashboards bench chaos lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## make or refresh .venv from uv.lock

# Two at a time, for most wait for processes and servers of theirs; each file by one of the two.
test: $(STAMP)  ## run every test
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP)  ## style, types and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## apply the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(STAMP)  ## import 336,776 flights: stopped, killed, resumed, checked
	$(BIN)/tracedjobs demo

dashboards: $(STAMP)  ## write the dashboards, and the alerts for Grafana, from grafana/
	$(BIN)/python -m grafana

bench: $(STAMP)-bench  ## measure against the goals and the peers
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(STAMP)  ## the long form of the kill tests
	TRACEDJOBS_CHAOS=long $(BIN)/pytest tests/chaos --timeout=7200 $(ARGS)
	TRACEDJOBS_CHAOS=long $(BIN)/pytest tests/telemetry/test_spans.py $(ARGS)

lock: $(UV)  ## take the newest versions into uv.lock
	$(UV) lock --upgrade

clean:  ## remove what the other targets made
	rm -rf .venv .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find tracedjobs tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(STAMP): pyproject.toml uv.lock | $(UV)
	rm -f .venv/.synced-*
	$(SYNC)
	@touch $@

$(STAMP)-bench: $(STAMP)
	$(SYNC) --group bench
	@touch $@

$(TOOLS)/bin/uv:
	$(or $(PYTHON),python3) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
