# make quickstart: the whole chain on digits.   make test: the tests.   make help: the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup quickstart cifar10 test lint report check clean

help: ## what can be made
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; use make PYTHON=python3.11 …"; exit 2; }
	@echo "Installing into $(VENV) (torch is a few gigabytes the first time) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

setup: $(STAMP) ## create .venv and install the package with its tools

quickstart: $(STAMP) ## unlabeled digits -> teacher -> student -> pruned -> int8, with a report
	@$(BIN)/ssdistill run configs/quickstart.yaml

cifar10: $(STAMP) ## the same on CIFAR-10 with three seeds (downloads the data)
	@$(BIN)/ssdistill reproduce configs/cifar10_cpu.yaml

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

lint: $(STAMP) ## check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

report: $(STAMP) ## rewrite the tables in README files from committed records
	@$(BIN)/ssdistill report

check: lint test ## all that continuous integration checks
	@$(BIN)/ssdistill report --check

clean: ## remove .venv (not the runs)
	rm -rf $(VENV)
