# make quickstart: the whole chain on digits.   make test: the tests.   make help: the rest.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
BIN := $(VENV)/bin
RUN := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
LOW := $(LOWEST)/.installed
ROOMS ?= $(sort $(shell git status --porcelain -uall -- ssdistill tests/unit | sed -nE 's,^...(ssdistill|tests/unit)/([a-z_]+)[/.].*,\2,p'))
CONTRACT := tests/contract/test_
TESTS_kinds := $(CONTRACT)published_constants.py $(CONTRACT)types.py
TESTS_losses := $(CONTRACT)losses.py tests/property $(TESTS_kinds)
TESTS_distill := $(TESTS_losses)
TESTS_pretrain := $(CONTRACT)methods.py $(CONTRACT)pretrain_configs.py $(TESTS_kinds)
TESTS_compress := $(CONTRACT)steps.py $(TESTS_kinds)
TESTS_evaluate := $(CONTRACT)protocols.py $(CONTRACT)protocol_traps.py $(TESTS_kinds)
TESTS_data := $(CONTRACT)every_source.py $(TESTS_kinds)
TESTS_teachers := $(CONTRACT)every_teacher.py $(TESTS_kinds)
TESTS_artifacts := $(CONTRACT)security_page.py $(TESTS_kinds)
TESTS_testing := $(patsubst %,$(CONTRACT)%.py,losses methods steps protocols every_source every_teacher networks_by_name)
TESTS_moved := $(CONTRACT)moved.py
TESTS_label_free := $(TESTS_evaluate)
TESTS_chain := $(CONTRACT)released_plans.py
TESTS_experiment := $(TESTS_chain)
PIP := -m pip install -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup quickstart cifar10 test test-fast smoke lint types stubs report check clean

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(RUN): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; use make PYTHON=python3.11 …"; exit 2; }
	@echo "Installing into $(VENV) (torch is a few gigabytes the first time) …"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) --editable .
	@touch $@

$(DEV): $(RUN)
	@echo "Installing the tools of the tests into $(VENV) …"
	@$(BIN)/python $(PIP) --editable '.[dev]'
	@touch $@

$(LOW): setup.cfg pyproject.toml .ci/lowest.py
	@echo "Installing the lowest versions that setup.cfg promises into $(LOWEST) …"
	@$(PYTHON) -m venv $(LOWEST)
	@$(PYTHON) .ci/lowest.py > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python $(PIP) --constraint $(LOWEST)/constraints.txt --editable '.[dev]'
	@touch $@

setup: $(DEV) ## create .venv and install the package with the tools of its tests

quickstart: $(RUN) ## unlabeled digits -> teacher -> student -> pruned -> int8, with a report
	@$(BIN)/ssdistill run configs/quickstart.yaml

cifar10: $(RUN) ## the same on CIFAR-10 with three seeds (downloads the data)
	@$(BIN)/ssdistill reproduce configs/cifar10_cpu.yaml

# The tests start a hundred processes: what one has compiled, the others read.
test test-fast smoke: export PYTHONDONTWRITEBYTECODE :=

# Three on two cores: processes that a test starts wait for each other.
test: $(DEV) ## run the tests
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

test-fast: $(DEV) ## run the tests of the rooms that changed, or of ROOMS="losses train"
	@for room in $(ROOMS); do test -e ssdistill/$$room -o -e ssdistill/$$room.py || \
		{ echo "no room is called '$$room'; rooms are the folders of ssdistill/"; exit 2; }; done
	@test -n "$(ROOMS)" || { echo 'no room has changed; name some: ROOMS="losses train" make test-fast'; exit 2; }
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(sort $(wildcard $(addprefix tests/unit/,$(ROOMS))) \
		$(foreach room,$(ROOMS),$(TESTS_$(room))) tests/golden tests/contract/test_packaging.py tests/contract/test_configs.py)

smoke: $(LOW) ## run the smoke tests with the lowest versions that setup.cfg promises
	@$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart=0 -m smoke

lint: $(DEV) ## check style, and that rooms import one way
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/ruff format --check .

types: $(DEV) ## check types, and that editors are shown the settings there are
	@$(BIN)/python .ci/stubs.py --check
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

stubs: $(DEV) ## write what editors are shown of the settings of every kind
	@$(BIN)/python .ci/stubs.py

report: $(DEV) ## rewrite the tables in README files from committed records
	@$(BIN)/ssdistill report

check: lint types test smoke ## all that continuous integration checks
	@$(BIN)/ssdistill report --check

clean: ## remove the environments (not the runs)
	rm -rf $(VENV) $(LOWEST)
