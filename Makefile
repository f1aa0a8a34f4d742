# Two commands are the set-up: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNNABLE := $(VENV)/.runnable
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest

TEXT := $(firstword $(wildcard data/text/wikitext-2 ../shared/data/text/wikitext-2))

# pip leaves compiling Python to the first import, which few of the packages' files ever see. Where the environment forbids keeping byte
# code, each of the tests' many interpreters would compile transformers anew: a quarter of a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo real test slow kernels faults bench docs notebooks lint format oldest clean

setup: $(INSTALLED)

# What runs a pipeline.
$(RUNNABLE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aimc needs Python 3.11 or newer; set PYTHON=python3.11 (or newer)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-compile --editable '.[train,fast]'
	@touch $@

# What tests, notebooks, static tiles and the site need beside that.
$(INSTALLED): $(RUNNABLE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-compile --editable '.[train,eval,gguf,fast,study,notebooks,static,docs,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-compile --only-binary aihwkit --no-deps aihwkit || \
	  echo "no wheel of aihwkit for this Python and machine: everything but static tiles works, and their tests are skipped"
	@touch $@

demo: $(RUNNABLE)
	$(BIN)/python -m train experiment=shipped restart=true

# A language model that people know, from the package index, on analog arrays: what a few effects cost and what each remedy buys, on little
# text. Of WikiText-2 where TEXT is a folder that has it, else the documentation inside CPython. docs/results.md has the long measurement.
real: setup
	$(BIN)/python -m train.fetch smollm2
	$(BIN)/python -m train.real output_dir=checkpoints/real_short calibration_tokens=512 \
	  measure.tokens=2048 measure.context=512 measure.stride=256 \
	  'rows=[6_bit,3_bit,3_bit_protected,3_bit_pruned,uniform_levels,one_reference,unrotated,unnormalised,uncompensated,bare]' \
	  $(if $(TEXT),text=$(TEXT)/wiki.test.raw calibration_text=$(TEXT)/valid.txt)

test: setup
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow

# Tests of the Triton kernels on what is compiled for a GPU, computed instruction by instruction: no GPU is needed, but a quarter
# of an hour of a core, or four minutes once Triton has compiled them. ARCH=90 is an H100, 80 an A100.
kernels: setup
	AIMC_ARCH=$(or $(ARCH),80) $(BIN)/python -m pytest -p tests.ptx.driver -m "slow or not slow" \
	  tests/ops/test_triton.py tests/ops/test_triton_softmax.py tests/ops/test_triton_engine.py

# Kills, corruptions, full disks, malformed settings: seven to fifteen minutes on two cores; writes docs/faults.md.
faults: setup
	$(BIN)/python -m tests.faults

# With BASE=COMMIT: this tree against that commit, which is checked out in a scratch clone, case by case in one run.
bench: setup
	$(BIN)/python -m benchmarks$(if $(BASE),.compare --commit '$(BASE)')

# The pages of docs/ as a site, for a browser: build/site/index.html. Without a network, once its tools are there.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The notebooks in a browser; an editor that opens notebooks needs no more than the environment in .venv.
notebooks: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt jupyterlab
	$(BIN)/python -m jupyterlab notebooks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every module imports with the oldest versions that pyproject.toml allows: first the library with its core dependencies
# alone, then the pipeline with its extra.
oldest:
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/lower_bounds.py > $(OLDEST)/core.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/core.txt --editable .
	$(OLDEST)/bin/python .ci/import_all.py
	$(PYTHON) .ci/lower_bounds.py train > $(OLDEST)/train.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/train.txt --editable '.[train]'
	$(OLDEST)/bin/python .ci/import_all.py --train

# What can be made again; texts and models that you put into data/ are yours and stay.
clean:
	rm -rf $(VENV) $(OLDEST) build checkpoints/demo checkpoints/run
