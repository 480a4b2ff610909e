# make quickstart  set everything up and run the main job: text in, a trained GPT-2 out
# make test        set everything up and run all tests
# make test-fast   those not marked slow: under two minutes on two cores
# make test-oldest those, with the oldest versions that pyproject.toml allows
# make test-newest those, with the newest, without constraints.txt
# make check       ruff and mypy
# make wheel       dist/gpt2_lightning-*.whl, which needs no checkout
# make docs        the docs as a site, in site/
# make bench       the measured comparisons of benchmarks/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# torch's builds for CPUs, instead of those for GPUs: TORCH_BACKEND=cpu make ... (uv knows where)
TORCH_BACKEND ?=
RESOLUTION_oldest := lowest-direct
RESOLUTION_newest := highest

.PHONY: quickstart test test-fast test-oldest test-newest check bench wheel docs clean

quickstart: $(VENV)/.run
	$(BIN)/python -m gpt2_lightning fit --config configs/quickstart.yaml
	$(BIN)/python -m gpt2_lightning generate --model $$(ls -dt lightning_logs/version_*/ | head -n 1) \
		--prompt "The object is"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

test-oldest test-newest: test-%: $(VENV)-%/.installed
	$(VENV)-$*/bin/python -m pytest -n auto --maxprocesses 8 -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	for name in loss memory train profile_step evaluate copies generate start; do $(BIN)/python -m benchmarks.$$name || exit 1; done

wheel:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

docs: $(VENV)/bin/python
	$(BIN)/pip install -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_BACKEND),)
	$(BIN)/pip install uv
	$(BIN)/uv pip install --python $@ --torch-backend $(TORCH_BACKEND) -c constraints.txt torch
endif

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.run

$(VENV)-%/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/pip install uv
	$(VENV)-$*/bin/uv pip install --python $(VENV)-$* --resolution $(RESOLUTION_$*) \
		$(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND)) -e ".[test,serve]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest dist site
