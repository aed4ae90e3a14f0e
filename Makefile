# Two commands are all that a new user needs: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test peers unit lint format bench canary chaos soak fuzz clean

demo: .venv/installed  ## the whole loop on synthetic hospitals, on this machine
	$(BIN)/fedthorax demo

test: lint peers  ## everything: style, types, unit tests, end-to-end tests with real processes
	$(BIN)/pytest

peers:  ## a PACS and DICOM tools for the tests to talk to, from Debian's packages where we may install them
	.ci/peers

unit: .venv/installed  ## the tests that start no process
	$(BIN)/pytest -m "not e2e and not chaos"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed  ## speed and memory as ratios, written to benchmarks/results/
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/run.py

canary: .venv/installed peers  ## does anything of a patient leave? whole runs, every byte looked at; writes docs/canary.md
	$(BIN)/python -m tests.canary

chaos: .venv/installed peers  ## processes killed, networks cut, disks full: the faults of docs/reliability.md, an hour or more
	$(BIN)/pytest -m chaos --ignore=tests/chaos/test_soak.py

soak: .venv/installed peers  ## two hundred rounds with faults at random; FEDTHORAX_SOAK_ROUNDS says how many
	$(BIN)/pytest -m chaos tests/chaos/test_soak.py

fuzz: .venv/installed  ## every parser of foreign files against damaged input, some minutes in all
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.fuzz

clean:  ## everything that the commands above wrote, the environment included
	rm -rf .venv demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@
