# Every target prints what it does. `demo`, `test`, `check` and `bench` set up first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
STAMP  := $(VENV)/.overspill-setup
PACKAGES := rabbitmq-server mosquitto mosquitto-clients dataset-fashion-mnist postgresql

.PHONY: help setup system demo test check bench bench-setup faults lock clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: system $(STAMP) ## install missing apt packages and the locked Python environment

system:
	@echo "==> system packages: $(PACKAGES)"
	@deploy/install-system-packages.sh $(PACKAGES)

$(STAMP): requirements/dev.lock requirements/setup.lock examples/requirements.txt pyproject.toml
	@echo "==> Python environment in $(VENV), from requirements/dev.lock"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/setup.lock
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r examples/requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## the whole system on real images; ARGS='--json FILE' for a script
	@echo "==> overspill demo $(ARGS)"
	@$(BIN)/overspill demo $(ARGS)

# Most tests wait for a process or a broker, so two files at a time take little more than
# half as long. A file stays together: its tests share what they started. In the order of
# collection: those that take long come first, and the quick ones fill up the end.
AT_ONCE ?= 2
test: setup ## all tests; ARGS='tests/unit' for some, AT_ONCE=0 for one after the other
	@echo "==> pytest $(ARGS), $(AT_ONCE) files at a time"
	@$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## format, lint, types and the import contracts
	@echo "==> ruff format, ruff check, mypy, lint-imports"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup ## every benchmark, each beside its limit; the pool's smoke run only (see benchmarks/)
	@for name in path local outbox drain batching model_load cascade update "pool --quick"; do \
		echo "==> python -m benchmarks.$$name $(ARGS)"; \
		$(BIN)/python -m benchmarks.$$name $(ARGS) || exit 1; done

bench-setup: setup ## the peers that benchmarks.pool runs beside ours, in .venv-bench
	@echo "==> the peers in .venv-bench, from requirements/bench.lock"
	@$(BIN)/python -m benchmarks.peers.environment

faults: setup ## every fault, with real processes; ARGS='--list', ARGS='agent --json FILE'
	@echo "==> python -m tests.faults $(ARGS)"
	@$(BIN)/python -m tests.faults $(ARGS)

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes \
	--no-emit-find-links --custom-compile-command "make lock" -c requirements/constraints.in pyproject.toml
lock: $(STAMP) ## resolve pyproject.toml into requirements/*.lock
	@echo "==> requirements/*.lock"
	@$(UV_COMPILE) --extra all --group dev -o requirements/dev.lock
	@for extra in edge cloud; do \
		$(UV_COMPILE) --extra $$extra -c requirements/dev.lock -o requirements/$$extra.lock; done
	@$(UV_COMPILE) --extra fleet --extra postgres -c requirements/dev.lock -o requirements/fleet.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-find-links \
		--custom-compile-command "make lock" requirements/setup.in -o requirements/setup.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-find-links \
		--custom-compile-command "make lock" -c requirements/constraints.in \
		-c requirements/cloud.lock requirements/bench.in -o requirements/bench.lock

clean: ## remove the environment, caches and what the demo left
	@echo "==> removing $(VENV), caches and build output"
	@rm -rf $(VENV) .venv-bench .overspill build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
