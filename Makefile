# Two commands on a fresh machine with Python 3.11+ and make:  make demo   make test
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

# uv where it is, else a private copy of it: it resolves torch and torchvision together.
$(STAMP): pyproject.toml requirements.lock
	@UV=$$(command -v uv || true); \
	if [ -z "$$UV" ]; then \
	  test -x .uv/bin/uv || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; }; \
	  UV=.uv/bin/uv; \
	fi; \
	test -x $(BIN)/python || $$UV venv --quiet --python '>=3.11' $(VENV); \
	$$UV pip install --quiet --python $(BIN)/python -r requirements.lock && \
	$$UV pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

install: $(STAMP)  ## build the environment in .venv from requirements.lock

demo: $(STAMP)  ## refine the bundled example: pictures and JSON in demo/
	$(BIN)/bpr demo --out demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n auto

check: $(STAMP)  ## ruff, mypy --strict and the layer test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) .uv demo build dist *.egg-info
