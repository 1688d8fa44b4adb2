# `make demo` and `make test` need Python 3.10-3.14 and nothing else: they make .venv and install into
# it what is missing. Another interpreter: make demo PYTHON=/path/to/python3.11

SHELL = /bin/sh
BIN = .venv/bin
RUN = runs/demo
STAMP = .venv/installed
PYTHON =

# The scripts of a virtual environment hold its path: a folder that was moved needs a new one.
MOVED := $(shell test ! -e $(STAMP) || test "`cat $(STAMP)`" = "$(CURDIR)" || echo moved)

.PHONY: help install demo demo-clean test soak lint docs gpu moved

help:
	@echo "make demo        train on emoji for a few minutes, write a report, print the results"
	@echo "make test        run the tests          (PYTEST='-k words' picks some)"
	@echo "make soak        run the long tests"
	@echo "make lint        formatting, lint, layers, types"
	@echo "make gpu         measure all that needs a GPU (PIECE='losses loader' some of it)"
	@echo "make docs        build the documentation into site/"
	@echo "make demo-clean  forget the demo's run, so that make demo trains again"
	@echo "make install     only make .venv and install into it"

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt $(MOVED)
	@test -z "$(MOVED)" || rm -rf .venv
	@if test ! -x $(BIN)/python; then \
		for python in $(PYTHON) python3.12 python3.11 python3.13 python3.14 python3.10 \
			python3 python; do \
			"$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' \
				>/dev/null 2>&1 && found="$$python" && break; \
		done; \
		test -n "$$found" || { echo "No Python 3.10 to 3.14 with the module venv was found:" \
			"install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it," \
			"make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		echo "making .venv with `$$found -c 'import sys; print(sys.executable, sys.version.split()[0])'`"; \
		"$$found" -m venv .venv || exit 1; \
	fi
	@echo "installing into .venv: some minutes and about 7 GB the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@mkdir -p .venv/links && ln -sfn ../.. .venv/links/counterpoint
	@echo "$(CURDIR)" > $(STAMP)

moved:

# An unfinished run is continued from its last checkpoint, a finished one is only reported again.
demo: $(STAMP)
	@$(BIN)/counterpoint data emoji emoji
	@if test -e $(RUN)/summary.json; then \
		echo "$(RUN) is finished already; make demo-clean, then make demo, trains it again"; \
	elif ls $(RUN)/checkpoints/*.ckpt >/dev/null 2>&1; then \
		$(BIN)/counterpoint fit --resume $(RUN) --trainer.devices=2; \
	else \
		rm -rf $(RUN); \
		$(BIN)/counterpoint fit --config emoji_demo --trainer.devices=2 --run_dir $(RUN); \
	fi
	@$(BIN)/counterpoint report $(RUN)

demo-clean:
	rm -rf $(RUN)

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not soak and not gpu" --durations=10 $(PYTEST)

soak: $(STAMP)
	@$(BIN)/python -m pytest -m "soak and not gpu" --durations=10 $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	# Through the link, the root is a namespace, whose parts import-linter takes for packages.
	PYTHONPATH=.venv/links $(BIN)/lint-imports --no-logo
	$(BIN)/pyright

docs: $(STAMP)
	@$(BIN)/python docs/generate.py
	@$(BIN)/zensical build --strict
	@echo "site/index.html"

# 24 minutes on one GPU, a piece at a time. Without network: CARRY names the folder that
# tests/benchmarks/gpu/carry.py filled, PYTHON an interpreter with torch; then nothing is installed.
gpu: $(if $(CARRY),,$(STAMP))
	@$(if $(CARRY),$(or $(PYTHON),python3) tests/benchmarks/gpu/hour.py --carry $(CARRY),\
		$(BIN)/python tests/benchmarks/gpu/hour.py) \
		$(if $(OUT),--out $(OUT)) $(if $(SCALE),--scale $(SCALE)) $(PIECE)
