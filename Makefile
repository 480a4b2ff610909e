# make quickstart  set everything up and run the main job: text in, a trained GPT-2 out
# make test        set everything up and run all tests
# make test-fast   those not marked slow: under two minutes on two cores
# make check       ruff and mypy
# make bench       the measured comparisons of benchmarks/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-fast check bench clean

quickstart: $(VENV)/.run
	$(BIN)/python -m gpt2_lightning fit --config configs/quickstart.yaml
	$(BIN)/python -m gpt2_lightning generate --model $$(ls -dt lightning_logs/version_*/ | head -n 1) \
		--prompt "The object is"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	for name in loss memory train profile_step evaluate copies generate start; do $(BIN)/python -m benchmarks.$$name || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV)
