# Each target works alone on a machine with python3 (3.11 or later) and pip: it makes .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: .venv/demo.stamp
	$(BIN)/seqmill run examples/demo.toml

# One thread per test process: OpenMP threads of two processes on two cores wait for each other. Byte code is kept even
# where the environment forbids it: the processes that tests start would all compile the sources anew.
test: .venv/dev.stamp
	OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -m "not gpu and not wide" -n 2 --dist loadgroup

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev.stamp
	$(BIN)/seqmill bench

clean:
	rm -rf .venv build dist runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

# `demo` needs torch; `dev` adds Ray, the test tools and the independent implementations that the tests compare with.
.venv/%.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(if $(filter demo,$*),train,$*)]"
	touch $@
