# The developer's front door: CI runs these same targets. `make` alone lists them.
# Every path is relative, so that a clone may lie in a folder whose name has spaces.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Errors only: warnings here are about the configured indexes, one for each package.
PIP := $(PY) -m pip --disable-pip-version-check --no-input -qq
# The same command for every lock: hashes of all artefacts, markers instead of one machine's choices, no index.
COMPILE = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header $(if $(UPGRADE),--upgrade) pyproject.toml

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test fmt lint types docs cov fuzz fuzz-connections reliability bench lock build clean distclean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  ARGS=...           passed on to the program: make test ARGS='-k sse -x'"
	@echo "  PYTHON=...         the Python (3.11 or newer) that a new .venv is made with"

demo: $(VENV)/.run ## Install the runtime if needed and start the gateway on its built-in provider
	@exec $(VENV)/bin/capi demo $(ARGS)

test: lint types ## Install the tools if needed; lint, types, then all tests (ends with what was skipped, and why)
	$(PY) -m pytest -rfEs $(ARGS)

fmt: $(VENV)/.dev ## Sort imports and format
	$(PY) -m ruff check --select I --fix .
	$(PY) -m ruff format .

lint: $(VENV)/.dev ## Lint, and check the format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.dev ## Check the types
	$(PY) -m mypy

docs: $(VENV)/.dev ## Rewrite the tables of docs/ that are made from the code
	$(PY) -m tests.support.config_reference
	$(PY) -m tests.support.field_matrix

# The core is measured by its own tests alone, so that no test of the runtime covers for one that it lacks.
cov: $(VENV)/.dev ## Branch coverage: fails below 100 % of a core module by its own test file; reports the rest
	$(PY) -m coverage erase
	COVERAGE_FILE=.coverage.rest $(PY) -m coverage run --source=capi_trio,capi_admin \
		-m pytest -q -m "not slow" --ignore=tests/capi_core
	COVERAGE_FILE=.coverage.rest $(PY) -m coverage report --skip-covered
	COVERAGE_FILE=.coverage.core $(PY) -m coverage run --source=capi_core -m pytest -q tests/capi_core
	COVERAGE_FILE=.coverage.core $(PY) -m coverage report --skip-covered --fail-under=100
	COVERAGE_FILE=.coverage.core $(PY) -m tests.own_coverage

SECS ?= 60
fuzz: $(VENV)/.dev ## Fuzz one machine: make fuzz T=sse SECS=60
	$(PY) -m fuzz --seconds $(SECS) $(ARGS) $(T)

fuzz-connections: $(VENV)/.dev ## Fuzz the connection server with whole connections over real sockets
	$(PY) -m fuzz.connections $(ARGS)

reliability: $(VENV)/.dev ## Keys, crashes, full disks and interleavings at full counts, as a table (half an hour)
	$(PY) -m tests.e2e.reliability $(ARGS)

bench: $(VENV)/.dev ## Measure CPU, lag and memory against the reference relays
	$(PY) -m bench $(ARGS)

lock: $(VENV)/bin/uv ## Write both lock files anew; keeps today's versions unless UPGRADE=1
	$(COMPILE) --group build --output-file requirements.lock
	$(COMPILE) --group build --group dev --constraint requirements.lock --output-file requirements-dev.lock

build: $(VENV)/.run ## Build the wheel into dist/
	$(PY) -m hatchling build -t wheel

clean: ## Remove build products and caches
	rm -rf dist .fuzz .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## ... and the .venv
	rm -rf $(VENV)

# The stamps in .venv say what was installed from which lock: a second run starts at once.
$(VENV)/.created:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "capi needs Python 3.11 or newer; '$(PYTHON)' is: $$("$(PYTHON)" --version 2>&1)" >&2; \
		echo "Install one, then name it: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.run: requirements.lock pyproject.toml $(VENV)/.created
	@echo "Installing what capi needs to run (again only when a lock or pyproject.toml changes) ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-index --no-deps --no-build-isolation -e .
	@touch $@

# The dev lock holds the runtime's pins too (tests/test_mirror.py), so this also does the work of .run.
$(VENV)/.dev: requirements-dev.lock requirements.lock pyproject.toml $(VENV)/.created
	@echo "Installing what capi's tests and tools need (again only when a lock or pyproject.toml changes) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-index --no-deps --no-build-isolation -e .
	@touch $(VENV)/.run $@

# Only `make lock` needs it, and what it writes is reviewed: not worth 37 MB in everybody's environment.
$(VENV)/bin/uv: | $(VENV)/.created
	@$(PIP) install 'uv>=0.9'
