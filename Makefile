# Sets up everything it needs in a virtual environment; see `make help`.
# Another interpreter: make test PYTHON=python3.12 (its environment is .venv-python3.12).

PYTHON ?= python3
VENV ?= .venv$(if $(filter python python3,$(notdir $(PYTHON))),,-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# two at a time; what shares a fixture stays together, the longest first (tests/conftest.py)
TWO := -n 2 --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: demo test test-all test-aot durations docs lint format clean help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
	|| sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## train ResNet-50's small stand-in to its target
	$(BIN)/mlperf-jax run resnet --tiny

test: $(VENV)/.installed-test  ## the tests that CI runs: of what changed, and some of the rest
	$(PYTEST) $(TWO) --battery=changed -m "not slow and not aot and not gpu"

test-all: $(VENV)/.installed-test  ## every test but the ahead-of-time compiles and those for an accelerator
	$(PYTEST) $(TWO) -m "not aot and not gpu"

durations: $(VENV)/.installed-test  ## as test-all, and keep what each part of the suite costs
	$(PYTEST) $(TWO) -m "not aot and not gpu" --measure tests/durations.json

test-aot: $(VENV)/.installed-aot  ## full-size ahead-of-time compiles for TPUs, in one process
	TPU_SKIP_MDS_QUERY=1 $(PYTEST) -m aot -s

docs: $(VENV)/.installed-docs  ## the documentation site, in build/site; a dead link is an error
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --fail-on-warning --write-all --quiet docs build/site
	@echo "build/site/index.html"

lint: $(VENV)/.installed-dev  ## ruff's checks, its format, the types, and no third copy of ten lines
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python scripts/count_duplicates.py --third mlperf_jax tests scripts docs

format: $(VENV)/.installed-dev  ## apply ruff's format and its safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the virtual environments and all caches
	rm -rf .venv .venv-* build dist *.egg-info .jax_cache .pytest_cache .ruff_cache \
		docs/benchmarks docs/notebooks docs/commands.md
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras: pip runs again only when pyproject.toml changed. It compiles no modules: Python does
# when they are first imported, which most never are.
$(VENV)/.installed: EXTRAS :=
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-dev: EXTRAS := [test,dev]
$(VENV)/.installed-docs: EXTRAS := [docs]
$(VENV)/.installed-aot: EXTRAS := [test,plan]
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs $(VENV)/.installed-aot: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "%s is Python %d.%d; this needs 3.11 or newer: make PYTHON=python3.12" % (("$(PYTHON)",) + sys.version_info[:2]))'
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip uninstall -qq --disable-pip-version-check --yes setuptools  # later Pythons leave it out: 9 MB
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".$(EXTRAS)"
	@touch $@
