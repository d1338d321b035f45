# Every target does its own set-up: on a fresh Debian machine with Python 3.11 or newer, `make demo` is enough.
VIDEO ?= tests/media/bigbuckbunny.mp4
ONCE ?=
SECONDS ?= 60
BIN := .venv/bin
# make ends with 2 whatever happened, so pytest's own code is said: 1 a test failed, 2 to 5 the run itself did.
pytest = $(BIN)/python -m pytest -q $(1) || { code=$$?; echo "pytest ended with $$code"; exit $$code; }
PACKAGES := -p oca -p packager -p fill -p control -p bench

SHELL := bash

.PHONY: help setup demo test test-all coverage fuzz lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install all that is needed, into .venv and node_modules (Debian packages as root or with sudo)
	@scripts/setup demo

demo: setup ## package, place, fill, steer and play VIDEO; ONCE=1 acts as a viewer, prints JSON and ends
	@$(BIN)/oca-bench demo "$(VIDEO)" $(if $(ONCE),--once)

test: ## run the tests: all that a commit is held to, the browsers last and one at a time
	@scripts/setup test
	@$(call pytest,-n 3 --dist loadfile -m "not long and not browser")
	@$(call pytest,-m "browser and not long" tests/e2e)

coverage: ## all tests but those of the browsers, and the branch coverage; no run is held to a number
	@scripts/setup test
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n 2 --dist loadfile --ignore tests/e2e --ignore tests/bench
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-all: ## as root: the tests, and what takes longer: a matrix of titles in every player, kernel TLS in a virtual machine, Ceph's S3
	@scripts/setup machine
	@scripts/setup s3
	@$(BIN)/python tests/kernel/machine.py --prepare
	@$(call pytest,-n 2 --dist loadfile --ignore tests/e2e)
	@$(call pytest,tests/e2e)
	@$(BIN)/python -m pytest tests/matrix/every_manifest.py
	@$(BIN)/python tests/kernel/machine.py tests/kernel/transfer.py
	@$(BIN)/python tests/kernel/machine.py tests/oca/test_secure.py -v -k "not cold"
	@$(BIN)/python tests/ceph/cluster.py $(BIN)/python -m pytest tests/control/test_origins.py

fuzz: ## fuzz every parser that reads hostile bytes, SECONDS (60) each; ends with 1 if something was found
	@scripts/setup test
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: ## ruff (rules and format), mypy (strict), and that no import goes up a floor
	@scripts/setup demo
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(PACKAGES)
	@$(BIN)/lint-imports --no-cache --no-logo

bench: ## the load tests and comparisons with rivals; takes long, prints figures
	@scripts/setup test
	@$(BIN)/oca-bench serve
	@$(BIN)/oca-bench serve --tls
	@$(BIN)/oca-bench handshake
	@$(BIN)/oca-bench cold
	@$(BIN)/oca-bench stall
	@$(BIN)/oca-bench fill
	@$(BIN)/oca-bench ladder
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rivals]'
	@$(BIN)/oca-bench pack

clean: ## remove everything that the targets made
	rm -rf .venv node_modules oca/assets demo .cache .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
