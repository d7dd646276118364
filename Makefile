# Targets for people; `make help` lists them. Each sets up what it needs, and only set-up downloads.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit integration conformance bench test-vm test-big clean

PYTHON := .venv/bin/python
export PATH := $(CURDIR)/.work/bin:$(CURDIR)/.venv/bin:$(PATH):/usr/sbin:/sbin
export PYTHONDONTWRITEBYTECODE := 1
# Further arguments for pytest, for example: make unit PYTEST="-k spdy -x"
PYTEST ?=
# What the integration tests leave on the machine fails them; "off" where other work goes on beside them.
LEFTOVERS ?= fail

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## Make .venv with Sampan in it, from the locked dependencies (Debian, root).
	@scripts/setup run

demo: ## Show a pod's whole life over CRI, each step checked; leaves nothing behind (root).
	@scripts/setup demo
	@$(PYTHON) scripts/demo.py

test: ## Lint, unit tests without root, integration tests as root, proof that nothing is left.
	@$(MAKE) --no-print-directory lint unit integration

lint: ## ruff, ruff format, mypy --strict, the layers (import-linter), the generated code.
	@scripts/setup test
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports --no-cache
	@$(PYTHON) scripts/gen-proto --check

unit: ## Tests that need no root; run as `nobody` where that user can read the checkout.
	@scripts/setup test
	@scripts/unprivileged $(PYTHON) -m pytest -m "not root" $(PYTEST)

integration: ## Tests on the real kernel, as root.
	@scripts/setup test
	@$(PYTHON) -m pytest -m root --leftovers=$(LEFTOVERS) $(PYTEST)

conformance: ## critest and crictl against `sampan daemon` (RUNTIME_ENDPOINT=unix://… for another runtime). Needs Go.
	@scripts/setup conformance
	@$(PYTHON) tests/conformance/run.py $(CONFORMANCE)
	@$(PYTHON) tests/conformance/runtime_tools.py
	@$(PYTHON) tests/conformance/crictl.py

bench: ## Measure side by side with runc and containerd, print ratios beside the budgets.
	@scripts/setup bench
	@$(PYTHON) bench/run.py $(BENCH)

test-vm: ## The integration tests and critest's AppArmor specs in an emulated machine with cgroup v2, AppArmor, SELinux, systemd.
	@scripts/setup test
	@scripts/setup conformance
	@scripts/setup vm
	@$(PYTHON) tests/vm/run.py $(VM) -- $(PYTEST)

test-big: ## Tests that take minutes and gigabytes: a 10 GB layer, this machine's own /usr as an image (root).
	@scripts/setup test
	@$(PYTHON) -m pytest --big -m big -s $(PYTEST)

clean: ## Remove what set-up and the tests made in this folder (not Debian's packages).
	rm -rf .work .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
