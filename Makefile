# Two commands for newcomers: `make demo` and `make test`. Each sets up everything it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo

.PHONY: demo annotate test suite quick lint style types clean

demo: $(VENV)/.installed  ## the whole chain on the built-in pocket model
	$(BIN)/rlhf run configs/demo.yaml --set run.folder=$(RUN)

annotate: $(VENV)/.installed  ## judge the demo's responses in your browser
	@test -f $(RUN)/config.yaml || $(MAKE) demo
	$(BIN)/rlhf annotate $(RUN)

test: style  ## everything that CI runs, the checker of types beside the tests
	+$(MAKE) --no-print-directory --jobs 2 suite types

suite: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.installed  ## the tests that take under five seconds each
	$(BIN)/python -m pytest -n 2 -m "not slow and not browser"

lint: style types

style: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
