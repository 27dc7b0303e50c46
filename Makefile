# Everything that is run by hand. `make demo` and `make test` need nothing but Python 3.11+ and this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: demo supabase-demo test check faults bench clean

demo: $(VENV)/.installed
	$(BIN)/python trainer_service.py demo

supabase-demo: $(VENV)/.installed
	$(BIN)/python -m tests.supabase_demo

# long campaigns are targets of their own; everything else runs here, side by side
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: $(VENV)/.installed
	$(BIN)/python -m tests.faults.campaign --minutes $(or $(MINUTES),30)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
