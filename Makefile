# make install   .venv with the project and everything for development
# make demo      a study of the digits, its front, an exported network
# make test      all tests, with coverage
# make quick     the fast tests, in two minutes
# make check     lint, format and types
# make bench     all benchmarks, with their results under benchmarks/results (many hours)
# make bench-peers   our step beside that of the package perforatedai, in an environment of its own

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test quick check bench bench-peers clean

OURS := core sham memory large samplers replay engine workers search claims

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
	for name in $(OURS); do $(BIN)/python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; done
	$(BIN)/python benchmarks/noise_gate.py > benchmarks/results/noise_gate.csv

bench-peers: .venv-peers/installed
	.venv-peers/bin/python benchmarks/peers.py --json benchmarks/results/peers.json

# Without its dependencies: the torchvision among them does not import beside a CPU build of torch, and is not used.
# The others come with mlflow. Nothing may bring the closed package perforatedbp: the benchmark refuses to run with it.
.venv-peers/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --constraint constraints.txt --editable .
	.venv-peers/bin/pip install --quiet --no-deps perforatedai==3.2.9
	touch $@

clean:
	rm -rf .venv .venv-peers build *.egg-info
