# make install   .venv with the project and everything for development
# make demo      a study of the digits, its front, an exported network
# make test      all tests, with coverage
# make quick     the fast tests, in two minutes
# make check     lint, format and types
# make bench     all benchmarks, with their results under benchmarks/results (half an hour)

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test quick check bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,dashboard]'
	touch $@

demo: install
	$(BIN)/python studies/digits_mlp.py --trials 40 --workers 2

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	$(BIN)/pytest --numprocesses 2 --dist worksteal --cov --cov-report term

quick: install
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not slow'

bench: install
	$(BIN)/python benchmarks/core.py --json benchmarks/results/core.json
	$(BIN)/python benchmarks/noise_gate.py > benchmarks/results/noise_gate.csv

clean:
	rm -rf .venv build *.egg-info
