# make quickstart: set up .venv, train on the photographs in assets/, print a table and leave runs/quickstart/.
# make quickstart-audio: the same for sound: a small codec, trained on the speech in assets/, beside Opus and k-means.
# make test: set up .venv and run the tests.
# make test-slow: the tests that take long, among them the kernels' on the code paths of other processors.
# make test-long: matrices of all combinations, long fuzzing and the notebooks; by hand; its result goes into tests/LONG.md.
# make data: fetch the larger set of photographs into data/photos.
# make data-speech: fetch five hours of speech in six languages into data/speech.
# make native: compile the search for the CPU (needs g++ 12 or later, or clang++; everything works without it, slower).
# make gpu: on a machine with a GPU, its tests, calibration and benchmarks, in half an hour; elsewhere a dry run.
# make docs: build the site of the documentation, build/site/index.html.
# make check: what CI runs besides the tests (lint, types, the wheel's content).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.complete
# A test process for each core, eight at most, of one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(shell getconf _NPROCESSORS_ONLN) --maxprocesses 8 --dist worksteal

.PHONY: quickstart quickstart-audio test test-slow test-long data data-speech native gpu docs check benchmark clean

quickstart: $(SETUP)
	$(BIN)/python scripts/quickstart.py

quickstart-audio: $(SETUP)
	$(BIN)/python scripts/quickstart_audio.py

test: $(SETUP)
	$(PYTEST)

test-slow: $(SETUP)
	$(PYTEST) -v -m "slow and not long"

test-long: $(SETUP)
	$(BIN)/python scripts/run_long_tests.py

data: $(SETUP)
	$(BIN)/python scripts/fetch_data.py photos --destination data/photos

data-speech: $(SETUP)
	$(BIN)/python scripts/fetch_data.py speech --destination data/speech

native: $(SETUP)
	$(BIN)/python -m vqkit.kernels.native

gpu: $(SETUP)
	$(BIN)/python scripts/gpu.py

docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

check: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_wheel.py
	$(BIN)/python scripts/quickstart.py --runs build/check --steps 20 --kmeans-patches 20000
	$(BIN)/python scripts/quickstart_audio.py --runs build/check --steps 20 --kmeans-frames 2000 --measures si_sdr stoi mel_distance

benchmark: $(SETUP)
	$(BIN)/python benchmarks/quantizer_step.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/soft_assignment.py

# The stamp is written last: a set-up that was cut short is done again.
$(SETUP): pyproject.toml constraints.txt
	@bash scripts/check_requirements.sh $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[metrics,train,audio,perceptual,listening,data,hub,teachers,vectors,diffusers,native,export,bench,docs,dev]"
	touch $(SETUP)

clean:
	rm -rf $(VENV)
