# The one door: `make demo` and `make test` do everything on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
SHARED := -n 2 --dist loadfile  # two processes, each file in one of them

.PHONY: demo test test-unit test-integration test-gpu test-wheel bench bench-gpu drill-slurm lint format docs-images golden clean

demo: $(READY)  ## train teacher, baselines and distilled students on real images, and print the table
	@$(BIN)/kdcluster submit demo --backend local --wait; $(BIN)/kdcluster results demo --strict

test: test-unit test-integration  ## everything that needs no GPU

test-unit: $(READY)
	$(BIN)/pytest $(SHARED) -m "not gpu and not integration"

test-integration: $(READY)  ## real torchrun processes
	$(BIN)/pytest $(SHARED) -m "integration and not gpu" --durations=25

test-gpu: $(READY)  ## what only a GPU can show
	$(BIN)/pytest -m gpu

test-wheel: $(READY)  ## the wheel, installed into an empty environment, from an empty directory
	PYTHON=$(PYTHON) BUILD=$(abspath $(BIN)/python) bash tests/wheel.sh

bench: $(READY)  ## what benchmarks/README.md has of a step, an epoch, a sweep, the data and a start
	PYTHONPATH=. $(BIN)/python benchmarks/step.py 9
	PYTHONPATH=. $(BIN)/python benchmarks/others.py 5
	PYTHONPATH=. $(BIN)/python benchmarks/trials.py 5
	PYTHONPATH=. $(BIN)/python benchmarks/data_path.py 9
	PYTHONPATH=. $(BIN)/python benchmarks/decoding.py 5
	PYTHONPATH=. $(BIN)/python benchmarks/views.py 9
	PYTHONPATH=. $(BIN)/python benchmarks/first_step.py 5

bench-gpu: $(READY)  ## the step with the real models of exp1 and exp2 on one GPU
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py

drill-slurm: $(READY)  ## preempt one run 20 times on a real SLURM, and compare its weights
	PYTHONPATH=. $(BIN)/python benchmarks/slurm_drill.py 20

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs-images: $(READY)  ## the picture of the README, from the finished demo, with chromium
	PYTHONPATH=. $(BIN)/python docs/images.py

golden: $(READY)  ## renew the golden loss curve; look at the diff
	$(BIN)/python -m tests.golden_loss

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[demo,test]'
	touch $(READY)

clean:
	rm -rf $(VENV) dist
