# Every command that people run. `make demo` and `make test` need only Python 3.11 or newer and this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests spend about half of their time waiting, so four processes keep two cores busy
JOBS ?= 4

.PHONY: demo supabase-demo test test-long check format faults bench clean

demo: $(VENV)/.installed
	$(BIN)/python trainer_service.py demo

supabase-demo: $(VENV)/.installed-dev
	$(BIN)/python -m tests.supabase_demo

# the slow tests and the fault campaigns have their own targets
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not long"

test-long: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m long

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# REAL=1 trains with Ultralytics instead of a fast fake training
faults: $(VENV)/.installed-dev
	$(BIN)/python -m tests.faults.campaign --seed $(or $(SEED),1) $(if $(REAL),--real --minutes $(or $(MINUTES),20),--minutes $(or $(MINUTES),30))

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.txt
	touch $@

clean:
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
