PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: install quickstart test lint

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(INSTALLED)

quickstart: install
	$(BIN)/mms run --pairs embedded --encoder embedded --dictionary topk --out runs/quickstart
	@echo "Open runs/quickstart/report.html in a browser."

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
