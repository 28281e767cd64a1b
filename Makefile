# Everything a person runs here. `make help` lists it.
# Needs Python 3.11 or newer, Rust, Node with npm, and make; leaves .venv/, node_modules/ and target/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
ENGINE_SOURCES := Cargo.toml Cargo.lock pyproject.toml \
	$(shell find crates -name '*.rs' -o -name Cargo.toml 2>/dev/null)
PYTHON_SOURCES := $(shell find python -name '*.py' 2>/dev/null)
SDK_SOURCES := $(shell find js/sdk/src -name '*.ts' 2>/dev/null) js/sdk/package.json js/sdk/tsdown.config.ts
Q ?=
SCALE ?= 1
SECONDS ?= 60

.PHONY: help setup demo demo-js demo-crash test test-deps bench prove prove-log prove-bridge fuzz lint format gen lock docs dist dist-js clean tools

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: $(STAMPS)/node $(STAMPS)/engine-dev ## Install all that development needs and build the engine (repeatable, quick the second time)
	@echo "ready: $(PY), the loom command is $(VENV)/bin/loom"

demo: $(STAMPS)/engine-release ## Let the trio answer a question: make demo Q="..."
	@data=$$(mktemp -d -t loom-demo-XXXXXX); \
	$(VENV)/bin/loom run examples/trio/app.py --data "$$data" -- $(if $(Q),"$$Q")

demo-js: tools $(STAMPS)/engine-release build/mixed/researcher.js ## The trio in three processes at a node, one of them in TypeScript: make demo-js Q="..."
	@$(PY) tools/demo_js.py $(if $(Q),"$$Q")

demo-crash: $(STAMPS)/engine-release ## Kill the trio twice in the middle of its work, and see that nothing is lost or done twice
	@$(PY) tools/demo_crash.py

test: setup ## Check and test everything; prints the time of each stage
	@$(PY) tools/stages.py test

test-deps: ## Install what the tests need from the system's packages
	@$(PYTHON) tools/deps.py test

bench: $(STAMPS)/bench ## Measure, print the table and write it to docs/benchmarks.md
	@$(BENCH)/bin/python -m benchmarks

prove: setup ## The long checks: licences and advisories, many simulated seeds (SCALE=10 for ten times as many)
	@SCALE=$(SCALE) $(PY) tools/stages.py prove

prove-log: setup ## Prove the log: crash points, kills, failing disks, power cuts; writes docs/reliability.md (SCALE as above)
	@SCALE=$(SCALE) $(PY) tools/stages.py prove-log

prove-bridge: setup ## Prove the Bridge: cuts, kills of the node, a storm, silent peers; writes docs/reliability.md (SCALE as above)
	@SCALE=$(SCALE) $(PY) tools/stages.py prove-bridge

fuzz: ## Feed the wire with bytes that nobody wrote, so long each (SECONDS=60): frames, sessions, the port
	@$(PYTHON) tools/fuzz.py $(SECONDS)

lint: setup ## Check format, style and types only
	@$(PY) tools/stages.py lint

format: $(STAMPS)/node ## Write all code in its one format
	@cargo fmt --all
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format --quiet .
	@node_modules/.bin/biome check --write --log-level=error

gen: $(STAMPS)/python ## Write what is generated from spec/, proto/ and what a node offers
	@$(PYTHON) tools/gen.py
	@PYTHONPATH=python $(PY) tools/gen_control.py

lock: $(STAMPS)/python ## Write the lock files anew from pyproject.toml, requirements/*.in and package.json
	@$(PY) tools/lock.py
	@cargo update --workspace --quiet

docs: setup ## Check links and code blocks of README and docs/
	@$(PY) -m pytest -q -p no:randomly tests/project/test_docs.py

dist: $(STAMPS)/python ## Build the source distribution, and the wheel from it, into dist/
	@rm -f dist/*.whl dist/*.tar.gz
	@echo "building the release engine (a minute or two the first time)"
	@$(VENV)/bin/maturin build --sdist --release --out dist
	@ls -l dist

dist-js: js/sdk/dist/node.js ## Build the package of the JavaScript SDK into dist/, which npm installs
	@mkdir -p dist && rm -f dist/loomos-sdk-*.tgz
	@cd js/sdk && npm pack --silent --pack-destination ../../dist | sed 's|^|dist/|'

clean: ## Remove all that was built or installed here
	rm -rf target dist build js/*/dist $(VENV) $(BENCH) node_modules .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .coverage htmlcov
	rm -f python/loom/_engine*.so
	find python tests examples tools -name __pycache__ -prune -exec rm -rf {} +

tools:
	@missing=0; \
	for tool in $(PYTHON) cargo node npm; do \
		command -v $$tool >/dev/null || { echo "missing: $$tool"; missing=1; }; \
	done; \
	if [ $$missing = 1 ]; then echo "Loom is built with Python 3.11 or newer, Rust, Node with npm, and make."; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Loom needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}; name another one: make PYTHON=python3.12 setup")'

# The lists are whole. Without --no-deps pip looks for what a package names with extras on its own, finds a version that
# is newer than the locked one, and refuses it: a lock broke on the day something in it was released anew.
$(STAMPS)/python: requirements/dev.txt | tools
	@test -x $(PY) || { echo "making $(VENV)/"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Python tools and libraries (half a minute)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/bench-python: requirements/runtime.txt requirements/bench.txt tools/deps.py $(STAMPS)/python
	@echo "installing what the benchmarks compare with into $(BENCH)/"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/runtime.txt
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/bench.txt
	@$(PYTHON) tools/deps.py bench
	@touch $@

$(STAMPS)/bench: $(ENGINE_SOURCES) $(PYTHON_SOURCES) $(STAMPS)/bench-python js/sdk/dist/node.js
	@echo "building the wheel that is measured (two minutes the first time, seconds later)"
	@rm -rf target/measured && $(VENV)/bin/maturin build --quiet --release --locked --out target/measured
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall target/measured/*.whl
	@echo "building what measures the engine and its log alone"
	@cargo bench --quiet --locked --package loom-core --bench bus --target-dir target --no-run
	@cargo bench --quiet --locked --package loom-log --bench publishers --target-dir target --no-run
	@touch $@

$(STAMPS)/node: package-lock.json $(STAMPS)/python
	@echo "installing tools of Node"
	@npm ci --silent
	@touch $@

js/sdk/dist/node.js: $(SDK_SOURCES) $(STAMPS)/node
	@echo "building the SDK for JavaScript (seconds)"
	@cd js/sdk && ../../node_modules/.bin/tsdown --logLevel error
	@touch $@

build/mixed/researcher.js: examples/mixed/researcher.ts examples/mixed/tsconfig.json js/sdk/dist/node.js
	@echo "building the Researcher in TypeScript (seconds)"
	@node_modules/.bin/tsc --project examples/mixed
	@touch $@

$(STAMPS)/engine-dev: $(ENGINE_SOURCES) $(STAMPS)/python
	@echo "building the engine for tests (two minutes the first time, seconds later)"
	@$(VENV)/bin/maturin develop --uv --locked
	@rm -f $(STAMPS)/engine-release && touch $@

$(STAMPS)/engine-release: $(ENGINE_SOURCES) $(STAMPS)/python
	@echo "building the engine for speed (two minutes the first time, seconds later)"
	@$(VENV)/bin/maturin develop --uv --release --locked
	@rm -f $(STAMPS)/engine-dev && touch $@
