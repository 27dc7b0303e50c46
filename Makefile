# Everything that is run by hand. `make demo` and `make test` need nothing but Python 3.11+ and this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# the tests wait as much as they compute: three at a time keep two cores busy
JOBS ?= 3

.PHONY: demo supabase-demo test test-long check faults bench clean

demo: $(VENV)/.installed
	$(BIN)/python trainer_service.py demo

supabase-demo: $(VENV)/.installed
	$(BIN)/python -m tests.supabase_demo

# what takes minutes of processor time, and the campaigns, are targets of their own
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not long"

test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m long

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# REAL=1 trains with Ultralytics instead of a quick stand-in
faults: $(VENV)/.installed
	$(BIN)/python -m tests.faults.campaign --seed $(or $(SEED),1) $(if $(REAL),--real --minutes $(or $(MINUTES),20),--minutes $(or $(MINUTES),30))

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
