# make env    builds .venv with everything the bundle and its tests need, and nothing else
# make demo   trains, judges and runs a 2D and a volumetric U-Net on generated data
# make test   the whole suite
# make lint   format, lint and types
# make test-real   the trainings on real data that docs/results.md reports, with their figures as assertions

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: env demo test lint test-real

env: .venv/installed

.venv/installed: requirements.txt requirements-runtimes.txt requirements-dicom.txt requirements-hosts.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -r requirements-dev.txt
	touch $@

demo: env
	$(BIN)/python -m bundle demo

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-real: env
	$(BIN)/python -m pytest tests/real -s
