# Two commands do everything, set-up included:  make demo   make test
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup test fuzz lint types unit demo gpu-check clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Two files at a time: most tests wait for one core or for another process.
unit: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The robustness tests with many more cases: broken files and options, kills and signals. SEED=1 makes others.
fuzz: $(READY)
	FLEXGS_FUZZ=1 FLEXGS_FUZZ_SEED=$(or $(SEED),0) $(BIN)/python -m pytest -n 2 tests/robustness

demo: $(READY)
	$(BIN)/flexgs demo

# On a machine with CUDA; no set-up here, because torch must match its driver. BIN=$$(dirname $$(which python3))
# takes the environment at hand, ROOT=folder adds a training on that capture.
gpu-check:
	$(BIN)/python3 -m pytest -m gpu --log-cli-level=INFO
	$(BIN)/python3 -m benchmarks.gpu_check $(if $(ROOT),--root $(ROOT)) $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
