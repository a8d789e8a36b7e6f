# make setup   makes .venv from requirements/cpu.txt, or from cuda.txt with an NVIDIA GPU; all others except clean run it first
# make train   trains the embedded default, in minutes on two CPU cores   options in ARGS="--train.steps 4 ...", ranks in NPROC
# make test    the tests in two processes                                 options in ARGS="-n 0 -k packaging ..."
#              as root it installs Debian's chromium if there is none, for the report's tests
# make bench   measures the kernels (minutes)                             options in ARGS="--suite dry -k linear ..."
# make lint    ruff, import contracts, types
# make docs    builds the documentation into site/; a broken link is an error
# make tiny    remakes the embedded model
# make clean   removes build outputs and .venv; never runs/

PYTHON ?= python3
NPROC ?= 1
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
LOCK := requirements/$(if $(filter 0,$(HAS_GPU)),cpu,cuda).txt
STAMP := $(VENV)/$(notdir $(basename $(LOCK))).stamp

# The environment contains the packages of the lock and none of the machine.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE := 1

TORCH_CUDA = import importlib.util as u, runpy, sys; \
	sys.exit(runpy.run_path(u.find_spec("torch").submodule_search_locations[0] + "/version.py")["cuda"] is not None)

.PHONY: setup chromium train test bench lint docs tiny clean

setup: $(STAMP)

# --no-compile: a run imports a fifth of the installed files; Python compiles them at the first import.
$(STAMP): $(LOCK) pyproject.toml setup.py $(wildcard csrc/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "'$(PYTHON)' is not Python 3.11 or newer; choose another with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' cannot make virtual environments: install its venv package (Debian: apt install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^pip==' $(LOCK))
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r $(LOCK)
ifeq ($(LOCK),requirements/cpu.txt)
	@$(BIN)/python -c '$(TORCH_CUDA)' || { \
		echo "No NVIDIA GPU here, but pip installed a CUDA build of torch: set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, remove $(VENV), and run make again" >&2; exit 1; }
endif
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

train: setup
	$(BIN)/capo train --nproc $(NPROC) $(ARGS)

# The report's page is tested in a real browser. Without one, those tests fail with one line; the others run.
chromium:
	@command -v chromium >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing Chromium, which the report's tests need"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null; \
	else echo "the report's tests need Chromium: install it (Debian: sudo apt-get install chromium)" >&2; fi

test: setup chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25 $(ARGS)

bench: setup
	$(BIN)/python -m pytest bench/ $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

# The variable turns off an advertisement of Material's for another generator.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

tiny: setup
	$(BIN)/python -m capo_fast.tiny

clean:
	rm -rf $(VENV) build dist site kernels/capo_kernels/lib *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
