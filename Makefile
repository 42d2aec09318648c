# make quickstart: set up and run two self-improvement rounds.   make test: set up and run the tests.
# make check: lint, types and tests, as in continuous integration.   make check-all: what is slower, with results in docs/.
PYTHON ?= python3
VENV ?= .venv
# Installed first where the virtual environment has no torch yet; give pip's arguments for another build.
TORCH ?= torch==2.13.0
OUT ?= runs/quickstart
BIN := $(VENV)/bin

# Tests run in as many processes as there are cores, each with one thread.
PROCESSES ?= auto

.PHONY: quickstart test lint check check-all mutants format check-openvino bench-peers clean

quickstart: $(VENV)/.installed
	$(BIN)/llm-mcts self-improve --config configs/quickstart.yaml --out $(OUT) --resume

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

# One-line errors planted in the code, each of which a test must find; the result goes to docs/results/mutants.md.
mutants: $(VENV)/.installed-dev
	$(BIN)/python scripts/mutants.py

check-all: check mutants

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install $(TORCH)
	$(BIN)/pip install -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -e ".[dev]"
	touch $@

# The openvino engine's tests, which need its packages; scripts/check_vllm.sh is the same for vLLM.
check-openvino: $(VENV)/.installed-dev
	$(BIN)/pip install -e ".[openvino]"
	$(BIN)/python -m pytest tests/llm_mcts/engines/openvino/test_openvino_engine.py tests/contracts/test_engines.py

# Other libraries that bench_tree.py can run beside this one, in an environment of their own.
bench-peers:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -c "import torch" 2>/dev/null || .venv-peers/bin/pip install $(TORCH)
	.venv-peers/bin/pip install treequest mctx open_spiel transformers tqdm
	.venv-peers/bin/pip install --no-deps llm-reasoners

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
