# make test   install into .venv and run the linter and the tests
# make demo   install into .venv, make the demo data, train, evaluate, show
# make screenshots   after the demo: take the README's picture of report and explanation (needs Chromium)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: test demo screenshots clean

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/python -m pytest

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

screenshots: $(VENV)/installed
	$(BIN)/python tools/screenshots.py

$(VENV)/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) demo
