# Everything below happens in .venv; `make setup` makes it. Flags of the search go in ARGS: make search ARGS="--params 0.5"
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SPACE ?= fine
RUN ?= $(lastword $(sort $(wildcard runs/*)))

.PHONY: setup search quick test lint check bench clean

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e '.[dev]'
	touch $@

search: setup
	$(BIN)/python -m slm_ray.search --space $(SPACE) $(ARGS)

# Tests that start no Ray and take a moment each: a minute in all
quick: setup
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# On a finished search: the newest in runs/, or make bench RUN=runs/mine
bench: setup
	$(BIN)/python benchmarks/forward.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/fidelity.py $(RUN)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
