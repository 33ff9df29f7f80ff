"""Tiny data sets that the workflows share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundle.phantom import Kind, write_phantom


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 64 rows and 96 columns: four to train and validate on, two held out."""
    folder = tmp_path_factory.mktemp("data") / "cells"
    write_phantom(Kind.CELLS, folder, cases=6, size=(64, 96))
    return folder


@pytest.fixture(scope="session")
def organ(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes of about 24 voxels, every second one oblique, all anisotropic: two held out."""
    folder = tmp_path_factory.mktemp("data") / "organ"
    write_phantom(Kind.ORGAN, folder, cases=4, size=(24, 25, 26))
    return folder
