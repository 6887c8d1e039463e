# What a developer does. `make` alone lists it.

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-clients check format lock lock-clients bench soak clean

BIN := .venv/bin
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv as requirements.lock names it (does nothing when it is current)
	@./bootstrap

demo: setup ## start everything on this machine, write, and read it back
	$(BIN)/duckmesh demo

up: setup ## start everything on this machine, until Ctrl-C
	$(BIN)/duckmesh up

test: setup ## run the tests (PYTEST_ARGS="-k barrier", WORKERS=0 for one process)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-clients: setup ## run every client against real processes, and print the matrix
	$(BIN)/pytest tests/clients -m "" --tb=short -q $(PYTEST_ARGS)

check: setup ## formatting, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## write the formatting, and what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## write the lock files from pyproject.toml (needs uv)
	uv pip compile --quiet --generate-hashes --no-annotate --no-header --universal \
		--python-version 3.11 --extra dev pyproject.toml -o requirements.lock
	uv pip compile --quiet --generate-hashes --no-annotate --no-header --universal \
		--python-version 3.11 --extra otel --constraints requirements.lock pyproject.toml \
		-o deploy/requirements.lock

lock-clients: ## write the locks of the clients in tests/clients (needs uv and npm)
	for name in tests/clients/locks/*.in; do \
		uv pip compile --quiet --generate-hashes --no-annotate --no-header --only-binary :all: \
			--no-strip-extras --python-version 3.11 $$name -o $${name%.in}.lock || exit 1; \
	done
	npm install --prefix tests/clients/javascript --package-lock-only --no-audit --no-fund \
		--omit-lockfile-registry-resolved=true

bench: setup ## measure, and write docs/benchmarks.md (BENCH_ARGS="--only writes")
	$(BIN)/python -m benchmarks --write-docs $(BENCH_ARGS)

soak: setup ## an hour of mixed load: what grows? (SOAK_ARGS="--minutes 10 --write-docs")
	$(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

clean: ## remove caches and builds (.venv stays)
	rm -rf dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
