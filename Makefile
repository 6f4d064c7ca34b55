# Two commands do everything, in .venv:
#   make bench   install, measure SEQ on the device that is here, write the HTML report
#   make test    install with the test extras, run the tests in TEST_WORKERS processes
#
# make gallery draws the docs' pictures of the report anew, from GALLERY_RUNS.
# Installing again is skipped until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV ?= .venv
SEQ ?= 8k..128k
BENCH_OPTIONS ?=
GALLERY_RUNS ?= results/h200 results/h200-sweep results/h200-8k
TEST_WORKERS ?= 2
TEST_OPTIONS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --quiet --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
HAS_NVIDIA := $(shell { nvidia-smi -L || test -e /dev/nvidia0; } >/dev/null 2>&1 && echo yes)
SYSTEM := $(shell uname -s)

# PyTorch's default build for Linux brings gigabytes of CUDA libraries: without an NVIDIA device its
# CPU build is taken, from pip's own index if that has it and else from PyTorch's.
ifeq ($(SYSTEM)$(HAS_NVIDIA),Linux)
INSTALL_TORCH = $(INSTALL) $(TORCH)+cpu 2>$(VENV)/torch.log || \
	$(INSTALL) $(TORCH)+cpu --extra-index-url https://download.pytorch.org/whl/cpu || \
	{ cat $(VENV)/torch.log >&2; exit 1; }
else
INSTALL_TORCH = $(INSTALL) $(TORCH)
endif

.DELETE_ON_ERROR:
.PHONY: bench test lint gallery venv

bench: venv
	$(BIN)/dynbench run --seq $(SEQ) --report $(BENCH_OPTIONS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile \
		--no-loadscope-reorder $(TEST_OPTIONS)

# mypy knows neither editable installs nor a package-dir mapping: the link shows it `dynbench` as it
# is once installed.
lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(VENV)/typed && ln -sfn $(CURDIR) $(VENV)/typed/dynbench
	MYPYPATH=$(VENV)/typed $(BIN)/mypy -m dynbench.cli -p dynbench.harness -p dynbench.suites \
		-p dynbench.dashboards -p dynnsiha

gallery: $(VENV)/.installed-figures
	$(BIN)/python -m dynbench.dashboards.gallery $(GALLERY_RUNS) docs/images/report

venv: $(VENV)/.installed

$(VENV)/.python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("dynbench needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "installing $(TORCH) into $(VENV)"
	$(INSTALL_TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(INSTALL) --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(INSTALL) --editable '.[$*]'
	touch $@
