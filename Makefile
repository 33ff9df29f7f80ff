# make env    builds .venv with everything the bundle and its tests need, and nothing else;
#             TORCH_INDEX=https://download.pytorch.org/whl/cpu takes a PyTorch without gigabytes of CUDA
# make demo   trains, judges and runs a 2D and a volumetric U-Net on generated data
# make test   the whole suite
# make lint   format, lint and types
# make test-long  what takes long for one test: several processes, kills, limits of memory, compilers
# make test-hosts  both packages in a real MONAI Label server, in an environment of its own (2.4 GB), an archive, OHIF, and reports in Chromium
# make test-faults  kills trainings a hundred times and fills disks; writes docs/faults.md
# make test-mutations  a thousand broken inputs, in ten minutes on 2 cores: SEED=15 COUNT=1000; writes docs/mutations.md
# make test-networks  every network trains, is validated and segments, in 2D and 3D
# make test-real   the trainings on real data that docs/results.md reports, with their figures as assertions

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
HOSTS := .venv-hosts/bin
TORCH = $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)
TORCH_INDEX ?=
PIP_OPTIONS := --disable-pip-version-check --progress-bar off
SEED ?= 15
COUNT ?= 1000

.PHONY: env demo test lint test-long test-networks test-real test-hosts test-faults test-mutations

env: .venv/installed

.venv/installed: requirements.txt requirements-runtimes.txt requirements-dicom.txt requirements-zoo.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install $(PIP_OPTIONS) $(TORCH) --index-url $(TORCH_INDEX))
	$(BIN)/pip install $(PIP_OPTIONS) -r requirements-dev.txt
	touch $@

demo: env
	$(BIN)/python -m bundle demo

# Two files of tests at a time, in the order of pyproject.toml; threads that wait leave their core to the other.
test: env
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: env
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each is refused in one sentence or done rightly; the inputs of the others lie in runs/mutations.
test-mutations: env
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.mutations --seed $(SEED) --count $(COUNT) --keep runs/mutations --report docs/mutations.md

test-networks: env
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal tests/networks

test-real: env
	$(BIN)/python -m pytest tests/real -s

test-faults: env
	FAULTS_REPORT=docs/faults.md $(BIN)/python -m pytest -n 2 --dist worksteal tests/faults

test-hosts: env .venv-hosts/installed
	HOSTS_REPORT=docs/monai-label-report.md $(BIN)/python -m pytest tests/hosts

# Beside a PyTorch for the CPU, which pip takes where it finds one, torchvision needs the sitecustomize.py.
.venv-hosts/installed: requirements.txt requirements-monailabel.txt tests/hosts/sitecustomize.py
	$(PYTHON) -m venv .venv-hosts
	$(HOSTS)/pip install $(PIP_OPTIONS) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(HOSTS)/pip install $(PIP_OPTIONS) --no-deps -r requirements-monailabel.txt
	cp tests/hosts/sitecustomize.py "$$($(HOSTS)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $@
