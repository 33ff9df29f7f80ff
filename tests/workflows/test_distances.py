"""Two decoders learn masks and distances of generated cells, and inference numbers the cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.data.phantom import Kind, write_phantom
from tests.commands import read_array, run

pytestmark = pytest.mark.workflow


@pytest.mark.long
def test_cells_are_numbered_from_learnt_distances(tmp_path: Path) -> None:
    data, overlays = tmp_path / "data", ("task/phantom_cells", "network/dual_decoder")
    write_phantom(Kind.CELLS, data, cases=10, size=(96, 96))
    small = {"channels": [8, 16, 32], "patch_size": [96, 96]}
    schedule = {"max_epochs": 25, "val_interval": 25, "learning_rate": 0.005}
    run("train", *overlays, **small, **schedule, dataset_dir=str(data), output_dir=str(tmp_path / "out"))
    run(
        *("inference", *overlays),
        **small,
        dataset_dir=str(data / "imagesTs"),
        output_dir=str(tmp_path / "seg"),
        checkpoint=str(tmp_path / "out/model.pt"),
    )
    shares = []
    for image in sorted((data / "imagesTs").iterdir()):
        pred = read_array(tmp_path / f"seg/{image.stem}_seg.png")
        truth = read_array(data / "labelsTs" / image.name)
        assert set(np.unique(pred)) == set(range(pred.max() + 1))
        assert pred.max() > 2  # objects, not classes
        shares.append(((pred > 0) & (truth > 0)).sum() / ((pred > 0) | (truth > 0)).sum())
    assert np.mean(shares) > 0.4, f"masks overlap by {shares}"
