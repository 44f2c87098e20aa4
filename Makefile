# make test   install into .venv, development packages too, and run the linter and the tests
# make demo   install into .venv, make the demo data, train, evaluate, show
# make matrix   the tests on other instruction sets, thread counts, compilers and versions; an hour
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: test demo matrix clean

test: $(VENV)/installed_for_tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --dist loadfile  # small tensors: a second thread only waits

demo: $(VENV)/installed
	$(BIN)/python tools/demo.py

matrix: $(VENV)/installed_for_tests
	PYTHON=$(abspath $(BIN)/python) $(BIN)/nox -f .ci/noxfile.py --keep-going $(if $(CELLS),-s $(CELLS))

$(VENV)/installed: requirements.txt
	@echo "Installing requirements.txt into $(VENV): some minutes, and with PyTorch for CUDA some gigabytes."
	@echo "Without a GPU: make TORCH_INDEX=ADDRESS takes PyTorch's much smaller CPU wheels (README, Install)."
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/pip install -r requirements.txt
	touch $@

$(VENV)/installed_for_tests: $(VENV)/installed tests/requirements.txt
	$(BIN)/pip install -r tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .matrix demo
