# A few verbs. Each makes what it needs; none needs anything installed but Python >= 3.10 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MYPYPATH := build/types

.PHONY: demo test lint types compatibility examples bench clean

demo: $(VENV)/.demo
	$(BIN)/stepwatch demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 5 --dist loadfile  # they wait for processes more than they compute

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders stand at the top of the repository; a type checker needs them under their import names.
types: $(VENV)/.test
	mkdir -p build/types/stepwatch
	for part in probe rules cli; do ln -sfn ../../../$$part build/types/stepwatch/$$part; done
	$(BIN)/mypy -p stepwatch.probe -p stepwatch.rules -p stepwatch.cli

# Rules and queries under smdebug itself and here; the table of all verdicts is printed.
compatibility: $(VENV)/.test .smdebug-venv
	$(BIN)/python -m pytest -s -m smdebug tests/rules/test_smdebug_table.py tests/rules/test_smdebug_surface.py

.smdebug-venv: scripts/smdebug_env.sh
	scripts/smdebug_env.sh

examples: $(VENV)/.test
	for example in examples/*.py; do (cd $$(mktemp -d) && $(CURDIR)/$(BIN)/python $(CURDIR)/$$example) || exit 1; done

bench: $(VENV)/.test
	$(BIN)/python benchmarks/hook_overhead.py --quick

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf build $(VENV)
