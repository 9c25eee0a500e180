# Everything a developer types. The environment (.venv) and the build are made when missing and
# reused afterwards; `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help env build compile test test-torch demo check bench bench-full cuda-compile lint format clean
help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

env: $(VENV)/.installed  ## create .venv with pinned tools

# torch comes first and alone: what depends on it must find it there, not choose one.
$(VENV)/.torch: requirements/torch.txt
	@echo "== torch (the largest download)"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar on -r requirements/torch.txt
	@touch $@

$(VENV)/.installed: requirements/dev.txt $(VENV)/.torch
	@echo "== build, test and check tools"
	$(PIP) install --progress-bar on -r requirements/dev.txt
	@touch $@

# The benchmark, and its tests, do without these where they cannot be had.
$(VENV)/.bench: requirements/bench.txt $(VENV)/.installed
	@echo "== other libraries to compare with"
	$(PIP) install --progress-bar on -r requirements/bench.txt && touch $@ || \
		echo "== they could not be installed, and are left out"

build: compile $(VENV)/.editable  ## compile what changed, and install in place

# The compile runs by itself, in the open, so that its progress shows; the install that follows
# finds nothing left to compile.
compile: $(VENV)/.installed
	@flock $(VENV)/.lock $(BIN)/python setup.py --quiet build_ext --inplace

$(VENV)/.editable: setup.py pyproject.toml $(VENV)/.installed | compile
	@flock $(VENV)/.lock $(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

test: build $(VENV)/.bench  ## run the whole test suite (PYTEST_ARGS="-k bilinear" for a part of it)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

demo: build  ## train three models on handwritten digits, in plain torch and in matcalc_ext
	$(BIN)/python examples/digits.py

# In a copy of the sources with an environment of its own, which the index may give a torch for CUDA.
TORCH ?= 2.10.0
OTHER := build/torch-$(TORCH)
test-torch:  ## build and test with another torch (TORCH=2.10.0), the oldest if none is named
	test -x $(OTHER)/bin/pip || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --progress-bar on torch==$(TORCH)
	$(OTHER)/bin/python -m pip install --progress-bar on -r requirements/dev.txt
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp -p --parents -t $(OTHER)
	cd $(OTHER) && bin/python setup.py --quiet build_ext --inplace && bin/python -m pip install \
		--quiet --no-deps --no-build-isolation -e . && bin/python -m pytest $(PYTEST_ARGS)

check: build  ## test every op and derivative on this machine's CPU, in half a minute
	$(BIN)/python -m matcalc_ext check

bench: build $(VENV)/.bench  ## time the ops against torch and others, in under five minutes
	$(BIN)/python -m matcalc_ext bench --out build/bench $(BENCH_ARGS)

bench-full: build $(VENV)/.bench  ## the same with all sizes and dtypes, in half an hour
	$(BIN)/python -m matcalc_ext bench --full --out build/bench-full $(BENCH_ARGS)

# Needs nvcc, and no GPU: `make build` compiles these sources where torch is built for CUDA.
cuda-compile: $(VENV)/.installed  ## compile the CUDA kernels, and show what each takes
	$(BIN)/python tools/cuda_compile.py

CPP := $$(git ls-files --cached --others --exclude-standard csrc tests | \
	grep -E '\.(cpp|h|inc|cu|cuh)$$')

lint: $(VENV)/.installed  ## check format, style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/.installed  ## format the sources, and mend what ruff can mend
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

clean:  ## remove what was built, keep .venv
	rm -rf build dist *.egg-info .*_cache matcalc_ext/_C*.so $(VENV)/.editable
	find matcalc_ext tests -name __pycache__ -prune -exec rm -rf {} +
