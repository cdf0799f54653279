# chameleon-lite: `make` lists the targets. Everything is written below this folder, except the backbone,
# which lies once in the user's cache (~/.cache/chameleon-lite, or $CHAMELEON_LITE_HOME).

PYTHON      ?= python3
# On Linux pip takes PyTorch's CUDA build (several GB) by default. For the CPU build:
#   make book TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PROFILE     ?= $(if $(filter reproduce,$(MAKECMDGOALS)),colab,smoke)
# ONLY=03 rebuilds the pages whose file name contains 03 and takes the others from the last run.
ONLY        ?=
# Processes that share the tests; WORKERS=0 runs them in one, as a debugger and -s want it.
WORKERS     ?= logical

# `make reproduce`: the paper's tables, the honest study, and the tables on data at hand.
DATA_DIR    ?=
TABLES      ?= table1-released table2-released table1-described table2-described
STUDY       ?= four-regimes $(patsubst experiments/%.yaml,%,$(wildcard experiments/honest-*.yaml experiments/coherence-*.yaml experiments/foreign-*.yaml))
LITE        ?= table1-released-lite table2-released-lite table2-released-lite-512 waterfall-lite waterfall-alpaca-lite \
               table1-released-dropout-lite table1-described-lite table2-described-lite
PROVED      ?= table1-released table2-released
PROVED_LITE ?= table1-released-lite table2-released-lite table2-released-lite-512

VENV := .venv
BIN  := $(VENV)/bin
# The versions that were tried: constraints-3.12.txt for Python 3.12, and so on; constraints.txt for 3.11.
PINS  = $(firstword $(wildcard constraints-$(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null).txt) constraints.txt)
PIP   = $(BIN)/python -m pip install --disable-pip-version-check -qq $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c $(PINS)

export HF_HUB_DISABLE_PROGRESS_BARS ?= 1
export TRANSFORMERS_VERBOSITY ?= error

.DEFAULT_GOAL := help
.PHONY: help book pdf test test-package test-plain triton reproduce browser serve lint types count install clean-book clean-runs clean-venv clean

help:
	@echo "make book       install if needed, run every notebook (PROFILE=$(PROFILE)), build the book into _build/site"
	@echo "make pdf        print the built book into one file, _build/book.pdf (needs Chromium; minutes)"
	@echo "make test       install if needed, run the test suite"
	@echo "make test-package  what a change of Python's version concerns: the method, own texts and the fast forms"
	@echo "make test-plain the method and own texts with the fast forms switched off"
	@echo "make triton     the GPU kernels of the head loss on a CPU, in Triton's interpreter (Linux; 2 minutes)"
	@echo "make reproduce  the paper's tables and the study (PROFILE=colab or paper) into results/, then the book"
	@echo "make serve      show the built book at http://localhost:8000 (Ctrl-C ends it)"
	@echo "make browser    open every page of the built book in Chromium and check it"
	@echo "make lint       ruff's rules over packages, tests, notebooks and book, its format over all but notebooks, spelling, style of the prose"
	@echo "make types      what a type checker sees of the public names (mypy)"
	@echo "make count      lines of Python by package, of the one sitting, longest file and function"
	@echo "make clean-book | clean-runs | clean-venv | clean   remove _build | runs | .venv | all three"
	@echo "variables: PYTHON=$(PYTHON)  PROFILE=smoke|colab|paper  ONLY=03  DATA_DIR=FOLDER (reproduce)"
	@echo "           TORCH_INDEX=https://download.pytorch.org/whl/cpu   PyTorch without CUDA on Linux"

# A half-made environment (interrupted, or without pip) has no stamp and is made again.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than 3.11; use: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@echo "[install] making $(VENV) with $$($(PYTHON) --version) (about 10 s)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "python's venv module does not work here; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.stamp-book: $(VENV)/.stamp-venv pyproject.toml $(wildcard constraints*.txt)
	@echo "[install] the package and the book's tools; the first time takes 1-10 minutes, most of it PyTorch's download"
	@start=$$(date +%s); $(PIP) -e '.[book]' && echo "[install] done in $$(( $$(date +%s) - start )) s"
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv pyproject.toml $(wildcard constraints*.txt)
	@echo "[install] the package, the book's tools and the test tools; the first time takes 1-10 minutes, most of it PyTorch's download"
	@start=$$(date +%s); $(PIP) -e '.[book,dev]' && echo "[install] done in $$(( $$(date +%s) - start )) s"
	@touch $@ $(VENV)/.stamp-book

install: $(VENV)/.stamp-test

book: $(VENV)/.stamp-book
	@echo "[book] the model: downloaded once (93 MB), unpacked to 540 MB, then reused"
	@$(BIN)/chameleon-lite fetch smollm2
	@$(BIN)/python book/build.py --profile $(PROFILE) $(if $(ONLY),--only $(ONLY))

pdf: $(VENV)/.stamp-test
	@echo "[pdf] every page of _build/site on paper (2-4 minutes)"
	@$(BIN)/python book/pdf.py

# One thread: the tests' models are so small that more threads only wait for each other. Who has nothing left to do
# takes tests from another (worksteal). A worker has PyTorch loaded, about 1 GB: eight at most.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal
test: $(VENV)/.stamp-test
	@echo "[test] the whole suite, without the browser (minutes; no network)"
	@HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(PYTEST) $(PYTEST_ARGS)

# For another Python: make test-package PYTHON=python3.13 VENV=../venv-3.13
test-package:
	@$(MAKE) --no-print-directory test PYTEST_ARGS="tests/core tests/app tests/fast $(PYTEST_ARGS)"

# CHAMELEON_LITE_ENGINE=plain make test runs all of it; this is what CI runs of it: no test again that cannot differ.
test-plain:
	@CHAMELEON_LITE_ENGINE=plain $(MAKE) --no-print-directory test PYTEST_ARGS="tests/core tests/app -m 'not browser and not one_form' $(PYTEST_ARGS)"

# The first line fails where Triton is absent: the tests alone would pass over its kernels.
triton: $(VENV)/.stamp-test
	@$(BIN)/python -c 'import triton; print(f"[triton] the kernels of the head loss, interpreted by Triton {triton.__version__}")'
	@CUDA_VISIBLE_DEVICES= TRITON_INTERPRET=1 $(PYTEST) tests/fast/test_head_loss_cuda.py $(PYTEST_ARGS)

browser: $(VENV)/.stamp-test
	@echo "[browser] every page at two widths and two themes, and by axe-core (minutes)"
	@$(PYTEST) -m browser tests/book $(PYTEST_ARGS)

# A run whose record is already there is skipped, so an interrupted reproduction continues where it stopped.
# gpt2, WikiText-2 and Alpaca come from the model hub; with DATA_DIR=FOLDER holding wikitext-2/ and alpaca/ the
# tables on data at hand are made too.
RUN_ON := --profile $(PROFILE) $(if $(DATA_DIR),--data-dir $(DATA_DIR)) --results results
reproduce: $(VENV)/.stamp-book
	@for name in $(TABLES) $(STUDY) $(if $(DATA_DIR),$(LITE)); do \
	  echo "[reproduce] experiments/$$name.yaml at PROFILE=$(PROFILE)"; \
	  $(BIN)/chameleon-lite run experiments/$$name.yaml $(RUN_ON) --resume || exit 1; \
	done
	@for name in $(PROVED) $(if $(DATA_DIR),$(PROVED_LITE)); do \
	  $(BIN)/chameleon-lite prove experiments/$$name.yaml $(RUN_ON) || exit 1; \
	done
	@$(BIN)/chameleon-lite tables --results results --write
	@$(BIN)/chameleon-lite claims --results results --write
	@$(BIN)/python book/build.py --profile $(PROFILE)

serve:
	@test -f _build/site/index.html || { echo "there is no book yet; run: make book"; exit 1; }
	@echo "http://localhost:8000 (Ctrl-C ends it)"; $(PYTHON) -m http.server --directory _build/site 8000

lint: $(VENV)/.stamp-test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell && $(BIN)/python tests/repository/prose.py

types: $(VENV)/.stamp-test
	@$(BIN)/python -m mypy

# Any Python from 3.11 on will do: nothing is installed for it.
count:
	@$(PYTHON) tests/repository/counts.py

clean-book:
	rm -rf _build
clean-runs:
	rm -rf runs
clean-venv:
	rm -rf $(VENV)
clean: clean-book clean-runs clean-venv
