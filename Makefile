# Every target sets up what it needs by itself: a virtual environment in .venv, no root, nothing outside this directory.
.DEFAULT_GOAL := help
.PHONY: help demo test soak bench bench-peers bench-repair check format generate setup setup-dev clean
MAKEFLAGS += --no-print-directory

PYTHON_IN_VENV := .venv/bin/python

help:  ## Say what can be made (this list)
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1:/p' Makefile | while IFS=: read -r name text; do printf '  %-11s %s\n' "$$name" "$$text"; done

demo: setup  ## Start three nodes, break one, repair it, prove that the replicas are equal (under 90 s)
	@.venv/bin/kvstore demo $(ARGS)

test: setup-dev  ## Run every check: lint, types, import contracts, generated code, all tests (under 8 min)
	@$(PYTHON_IN_VENV) -m scripts.check --tests -- $(ARGS)

soak: setup-dev  ## Hunt for rare faults: SEEDS=20000 simulated clusters, all scenarios on real processes (hours; resumes)
	@$(PYTHON_IN_VENV) -m scripts.soak $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

bench: setup-dev  ## Measure: digest exchange, failure detector, tree build and comparison (sizes beside times)
	@$(PYTHON_IN_VENV) -m scripts.bench $(ARGS)

bench-peers: setup-dev  ## Measure beside Cassandra, chitchat and memberlist (needs java and mvn, cargo, go; minutes)
	@$(PYTHON_IN_VENV) -m benchmarks.peers.run $(ARGS)

bench-repair: setup-dev  ## Measure repair between processes: bytes to find, seconds, rows moved (ten minutes)
	@$(PYTHON_IN_VENV) -m benchmarks.repair $(ARGS)

check: setup-dev  ## Run the fast checks only: lint, types, import contracts, generated code
	@$(PYTHON_IN_VENV) -m scripts.check

format: setup-dev  ## Format the code and apply the safe fixes of the linter
	@$(PYTHON_IN_VENV) -m ruff check --fix-only --quiet
	@$(PYTHON_IN_VENV) -m ruff format

generate: setup-dev  ## Write the protobuf code from proto/ into the packages
	@$(PYTHON_IN_VENV) -m scripts.generate

setup:  ## Create .venv with what running needs; does nothing when it is there
	@sh scripts/setup.sh runtime

setup-dev:  ## The same with what the checks need
	@sh scripts/setup.sh dev

clean:  ## Remove .venv, caches and build output
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
