# Two commands matter: `make demo` and `make test`. Each makes its own virtual environment.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo study test test-slow lint bench lock clean

demo: $(READY)  ## the VaGraM claim in minutes: verdict, plots and a page
	@$(BIN)/jaxlab run vagram --preset demo --out runs/vagram-demo --resume
	@$(BIN)/jaxlab report --out runs/report.html

study: $(READY)  ## the full small study behind the stored verdict
	@$(BIN)/jaxlab run vagram --preset small --out experiments/results/vagram --resume
	@$(BIN)/jaxlab report --out runs/report.html

test: $(READY)  ## the fast tests
	@$(BIN)/python -m pytest

test-slow: $(READY)  ## kills, long runs, learning curves
	@$(BIN)/python -m pytest -m slow

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY)  ## measures every row of BENCHMARKS.md again; PEERS="--mergekit PYTHON ..." for peers
	@$(BIN)/python -m jaxlab.bench $(PEERS)

lock: $(READY)  ## resolves requirements.lock anew from the ranges in pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --extra test pyproject.toml \
		--no-emit-index-url --no-header --no-annotate --quiet --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): requirements.lock pyproject.toml
	@python=$$(for p in $(PYTHON) python3 python3.12 python3.11 python3.13; do \
		if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; \
	done); \
	if [ -z "$$python" ]; then \
		echo "jaxlab needs Python 3.11 or newer, and none was found: make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	test -x $(BIN)/python || $$python -m venv $(VENV); \
	echo "installing jaxlab into $(VENV) ($$($(BIN)/python --version))"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . && \
	touch $@
