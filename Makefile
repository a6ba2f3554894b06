# Every command of a developer's day. `make help` lists them; CONTRIBUTING.md explains them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := .ci/pytest $(BIN)/python -m pytest
SOURCES := zeropod lab tests benchmarks setup.py
C_SOURCES = $(shell git ls-files '*.c' '*.h')

.PHONY: help host-packages venv ext lab lab-shell demo test test-fast lint unit native netns criu \
	package containerd containerd-v2 containerd-old containerd-new many soak storm vm-test bench wheel \
	clean format

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

host-packages: ## install the Debian packages that building and testing need (root)
	@lab/install-host-packages.sh

$(VENV)/.stamp: requirements-dev.txt
	@echo "== Python tools into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

venv: $(VENV)/.stamp ## make the development environment

ext: venv ## build the extensions, the BPF object and the launcher in place
	@$(BIN)/python setup.py -q build_ext --inplace

wheel: venv ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist .

lab: host-packages venv ## build the throw-away node below .lab/
	@$(BIN)/python -m lab build

lab-shell: lab ## a shell on the node (one is started if none runs), with ctr and our commands
	@$(BIN)/python -m lab shell

demo: lab ## show a container that sleeps and wakes (KEEP=1 leaves it running)
	@$(BIN)/python -m lab.demo $(if $(KEEP),--keep)

test: host-packages venv ext lint unit native package netns lab criu containerd containerd-v2 containerd-old ## everything, set-up included

test-fast: venv ext lint unit ## what needs no root

lint: venv ## ruff, mypy, the layers, clang-format
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	clang-format-14 --dry-run --Werror $(C_SOURCES)

format: venv ## let the formatters have their way
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))
	clang-format-14 -i $(C_SOURCES)

unit: ext ## unit and fuzz tests
	$(PYTEST) tests/unit tests/fuzz

native: ## the C library's own tests under ASan and UBSan
	$(MAKE) --no-print-directory -C csrc test

netns: ext ## BPF and activator in network namespaces of their own (root)
	$(PYTEST) tests/netns

criu: ext lab ## checkpoints and restores by runc and CRIU (root)
	$(PYTEST) tests/criu

package: ext ## wheel, sdist, launcher and zygote
	$(PYTEST) tests/package

MANY := tests/containerd/test_many.py

containerd: ext lab ## pods through a real containerd (root)
	$(PYTEST) tests/containerd --ignore $(MANY)

many: ext lab ## a hundred pods made, woken and removed at once, which fills the machine (root)
	$(PYTEST) $(MANY)

# What has to do with cgroups. The node sees cgroup2 alone; this machine may have no controllers there.
V2_SUITES := $(addprefix tests/containerd/test_,sleep.py verbs.py inside.py status.py cgroups.py)

containerd-v2: ext lab ## a part of that suite on a node with cgroup2 alone (root)
	ZEROPOD_CGROUPS=v2 $(PYTEST) -m "not limits" $(V2_SUITES)

# Sleeping, waking and what differs between versions; the rest of the suite has nothing to do with it.
OTHER_SUITES := $(addprefix tests/containerd/test_,stock.py ctr.py status.py)

containerd-old: ext lab ## a part of that suite with containerd 1.7 (root)
	ZEROPOD_CONTAINERD=1.7 $(PYTEST) $(OTHER_SUITES)

containerd-new: ext lab ## the suite with the newest containerd, which is built first (root)
	ZEROPOD_CONTAINERD=newest $(PYTEST) tests/containerd

MINUTES ?= 30
soak: lab ## pods that come, sleep, wake and go while processes are killed (MINUTES=30; root)
	$(BIN)/python -m lab.soak --minutes $(MINUTES)

vm-test: lab ## a node in a virtual machine, with kernels 6.1 and 6.12 (up to 30 minutes; root)
	$(BIN)/python -m lab.vm

CYCLES ?= 10000
storm: lab ## openers at random moments around the scale-down (CYCLES=10000, half an hour; root)
	$(BIN)/python -m lab.storm --cycles $(CYCLES)

bench: lab ## latency and memory, interleaved with the stock shim
	$(BIN)/python -m benchmarks

clean: ## remove all that was built, the node included
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m lab clean; fi
	rm -rf build dist *.egg-info .lab $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find zeropod -name '*.so' -delete
	rm -rf zeropod/_build_info.py zeropod/_fastpath/*.c zeropod/_fastpath/*.o zeropod/_fastpath/bin
