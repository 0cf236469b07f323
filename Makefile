# Two commands on a fresh machine with Python 3.11+ and make:  make demo   make test
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SITE   ?= site
# One more than there are cores: many tests wait for other processes.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
# The environment that `make sbom` lists: by default this one; for what is shipped, a production environment's.
SBOM_PYTHON ?= $(BIN)/python
SBOM   ?= sbom.json

.DEFAULT_GOAL := help
.PHONY: help install demo test coverage check lock architecture version docs wheel sbom audit clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

# uv where it is, else a private copy of it: it resolves torch and torchvision together.
FIND_UV = UV=$$(command -v uv || echo .uv/bin/uv); command -v $$UV >/dev/null || \
  { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv; }

$(STAMP): pyproject.toml requirements.lock
	@$(FIND_UV); \
	test -x $(BIN)/python || $$UV venv --quiet --python '>=3.11' $(VENV); \
	$$UV pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock && \
	$$UV pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

install: $(STAMP)  ## build the environment in .venv from requirements.lock

demo: $(STAMP)  ## refine the bundled example: pictures and JSON in demo/
	$(BIN)/bpr demo --out demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=25 --durations-min=1

coverage: $(STAMP)  ## run the tests and count the lines and branches they reach; below the floor is an error
	@mkdir -p build
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=
	$(BIN)/coverage report >build/coverage.txt; code=$$?; tail -n 1 build/coverage.txt; exit $$code

check: $(STAMP)  ## ruff, mypy --strict and the contracts of the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lock:  ## write requirements.lock after a change of pyproject.toml; what is in it stays, but UPGRADE=name
	@$(FIND_UV); $$UV pip compile --quiet --python-version 3.11.14 --extra dev --generate-hashes --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade-package $(UPGRADE)) \
	  pyproject.toml --output-file requirements.lock

architecture: $(STAMP)  ## write the list of modules, and the table of faults and doors, into the docs
	$(BIN)/python docs/modules.py
	$(BIN)/python docs/kinds.py

# The one source is bpr_service/__init__.py; `make version` writes it where images are named, before a release.
version:  ## write the package's version into the Dockerfile, docker/, k8s/ and docs/deploy.md
	@old=$$(sed -n 's/^ARG VERSION=//p' Dockerfile); \
	new=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' bpr_service/__init__.py); \
	grep -rlF "$$old" Dockerfile docker k8s docs/deploy.md | xargs sed -i "s/\(VERSION=\|bpr-service:\|newTag: \)$$old/\1$$new/g"; \
	echo "$$old -> $$new"

# Not with --quiet: it drops warnings before --strict counts them.
docs: $(STAMP)  ## build the docs site in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir $(abspath $(SITE))

# With no package of this environment: what a person gets who types pip install.
wheel:  ## build the wheel in dist/, at most 20 MB, and refine with it alone in a clean environment
	rm -rf dist build/clean build/lib
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@set -- dist/*.whl; size=$$(wc -c <"$$1"); echo "$$1: $$size bytes"; test "$$size" -le 20000000
	$(PYTHON) -m venv build/clean
	build/clean/bin/pip install --quiet --disable-pip-version-check "$$(ls $(CURDIR)/dist/*.whl)[demo]"
	cd build && clean/bin/bpr doctor && clean/bin/bpr demo --out clean/demo && test -s clean/demo/coffee.png

sbom: $(STAMP)  ## list what SBOM_PYTHON's environment holds, as CycloneDX JSON
	$(BIN)/cyclonedx-py environment --no-validate --output-reproducible --pyproject pyproject.toml \
	  --output-format JSON --output-file $(SBOM) $(SBOM_PYTHON)

# pip-audit ends with 1 whether it found something or could ask nobody: only the first is a finding.
audit: $(STAMP)  ## known vulnerabilities of requirements.lock; needs an advisory service (OSV) on the network
	@mkdir -p build; \
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off --vulnerability-service osv \
	  --requirement requirements.lock 2>build/audit.log; code=$$?; \
	if grep -qE 'ConnectionError|ProxyError|SSLError|Timeout|ServiceError|HTTPError' build/audit.log; then \
	  tail -n 1 build/audit.log >&2; \
	  echo "make audit: the advisory service did not answer, so nothing was checked; run it where it can be reached" >&2; \
	  exit 2; \
	fi; \
	cat build/audit.log >&2; exit $$code

clean:  ## remove what the other targets made
	rm -rf $(VENV) .uv demo build dist $(SITE) $(SBOM) *.egg-info
