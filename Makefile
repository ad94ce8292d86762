# make demo    the page on http://127.0.0.1:7860      make demo MODEL=3b PORT=8000 HOST=0.0.0.0
# make test    the tests                              make test ARGS="-k vision"
# make check   lint, types and tests
# make kernels mamba-ssm's Triton kernels beside the environment, so that a test can interpret them without a GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# conda exports a HOST of its own: only one given on the command line counts
ifneq ($(origin HOST),command line)
HOST :=
endif

.PHONY: demo test check kernels

demo: $(VENV)/.installed
	$(BIN)/python app.py $(if $(MODEL),--model "$(MODEL)") $(if $(HOST),--host "$(HOST)") $(if $(PORT),--port "$(PORT)")

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

kernels: $(VENV)/kernels/.installed

# the stamps are written last: an install that was interrupted is done again
$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@

# not into the environment itself: where transformers sees mamba-ssm, its own Mamba-2 wants a GPU
$(VENV)/kernels/.installed: requirements-cuda.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install --target $(VENV)/kernels/build ninja==1.13.2 packaging "setuptools<82" wheel
	PYTHONPATH="$(CURDIR)/$(VENV)/kernels/build" MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE \
		$(BIN)/python -m pip install --target $(VENV)/kernels/site --no-deps --no-build-isolation \
		--no-binary mamba-ssm $(shell grep -E "^(mamba-ssm|einops)==" requirements-cuda.txt)
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) was not found: install Python 3.10 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$$($(PYTHON) --version) is too old: ML-Mamba needs Python 3.10 or newer; name one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) can't make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
