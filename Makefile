# CloudStore. `make run` starts it, `make test` tests it; both need only python3 (3.11 or newer) and make.

.DEFAULT_GOAL := help
.PHONY: help run test soak check bench lock format clean env-base env-test

VENV ?= .venv
export VENV
# The first Python that is new enough; the plain python3 when none is, so that it can say so.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
BIN := $(VENV)/bin
UV := var/tools/uv
BENCH_VENV := var/bench/venv

help: ## This list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: env-base ## Start CloudStore (PORT, default 5000; CLOUDSTORE_DATA, default var/). Ctrl-C ends it
	@$(BIN)/python -m cloudstore.secretfile
	@exec $(BIN)/python -m cloudstore.supervise --init

test: env-test ## All tests, on SQLite and PostgreSQL (ARGS="tests/vfs -k x", DB=sqlite|postgres)
	@exec $(BIN)/python -m tests.run --db "$(DB)" -- $(ARGS)

soak: env-test ## Random programs against the model (MINUTES=10, SEED, DB=sqlite|postgres): a row in docs/reliability.md
	@exec $(BIN)/python -m tests.machine.soak --minutes "$(or $(MINUTES),10)" --db "$(or $(DB),sqlite)" $(if $(SEED),--seed "$(SEED)")

check: env-test ## Linters, types, import rules, missing migrations, module lengths
	@exec $(BIN)/python -m scripts.check

bench: env-base ## CloudStore beside its peers (ARGS="--quick", "--help"): docs/performance.md
	@VENV=$(BENCH_VENV) $(PYTHON) scripts/environment.py bench
	@exec $(BIN)/python -m bench --peers $(BENCH_VENV) $(ARGS)

format: env-test ## Put the code in shape
	@$(BIN)/python -m ruff check --fix --quiet . ; $(BIN)/python -m ruff format .

lock: ## Compile requirements/*.in to *.txt (ARGS="--upgrade" or "--upgrade-package NAME")
	@test -x $(UV)/bin/uv || { $(PYTHON) -m venv $(UV) && $(UV)/bin/pip install -q uv; }
	@for name in base prod test bench; do \
		$(UV)/bin/uv pip compile --python-version 3.11 --universal --generate-hashes --no-header \
			--no-emit-index-url --no-emit-find-links --quiet $(ARGS) \
			$$(case $$name in (base|bench) ;; (*) echo "-c requirements/base.txt" ;; esac) \
			requirements/$$name.in -o requirements/$$name.txt || exit 1; \
	done

clean: ## Remove the environment and caches (never var/, where the data is)
	rm -rf $(VENV) $(VENV).lock var/tools $(BENCH_VENV) $(BENCH_VENV).lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis test-results
	find . -name __pycache__ -not -path './var/*' -prune -exec rm -rf {} +

env-base:
	@$(PYTHON) scripts/environment.py base

env-test:
	@$(PYTHON) scripts/environment.py test
