"""`python -m bundle why` on tiny data, with networks that nobody trained."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from bundle.runs.experiments import parser_of
from tests.commands import ROOT, TINY, as_options, unchanged_process, workbench

pytestmark = pytest.mark.workflow


def args_file(folder: Path, dims: int, task: str) -> Path:
    """An experiment that segments."""
    network = {key: TINY[dims][key] for key in ("patch_size", "channels", "runtime")}
    files = ["configs/inference.json", f"configs/task/{task}.json"]
    experiment = {"config_file": files, **network, "checkpoint": str(folder / "model.pt")}
    torch.manual_seed(0)
    made = ConfigParser(dict(parser_of(experiment).get())).get_parsed_content("network_def")
    torch.save(made.state_dict(), folder / "model.pt")
    (folder / "args.json").write_text(json.dumps(experiment))
    return folder / "args.json"


@pytest.mark.parametrize(("dims", "task"), [(2, "phantom_cells"), (3, "phantom_organ")])
def test_maps_lie_on_the_grid_of_the_file(
    dims: int,
    task: str,
    cells: Path,
    organ: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    image = sorted(((cells if dims == 2 else organ) / "imagesTr").iterdir())[1]  # of volumes an oblique one
    at = [30, 40, 12][:dims] if dims == 2 else [9, 14, 12]
    given = {"recipe": args_file(tmp_path, dims, task), "image": image, "output_dir": tmp_path / "out"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/other_why_smoothgrad.nii.gz").touch()  # of an earlier run
    with unchanged_process():
        said = workbench("why", *as_options(**given, at=at, method=["gradient", "occlusion"]))
    assert "half of what moved the answer" in said, said
    with (tmp_path / "out/why.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["gradient", "occlusion"]
    assert {row["at"] for row in rows} == {" ".join(map(str, at))}
    assert (tmp_path / "out/why.png").is_file()
    assert not list((tmp_path / "out").glob("*smoothgrad*"))
    for row in rows:
        found = nib.load(next((tmp_path / "out").glob(f"*_why_{row['method']}.nii.gz")))  # type: ignore
        values = np.asarray(found.dataobj)
        if dims == 2:
            assert values.squeeze().shape == np.asarray(Image.open(image)).shape
            values = values.squeeze().T
        else:
            there = nib.load(image)  # type: ignore[attr-defined]
            assert values.shape == there.shape
            np.testing.assert_allclose(found.affine, there.affine, atol=1e-3)
        assert np.isfinite(values).all()
        if row["method"] == "gradient":  # of one convolution after the other the place itself counts most
            near = tuple(slice(max(place - 4, 0), place + 5) for place in at)
            assert values[near].mean() > 2 * values.mean()
    with unchanged_process():
        wrong = workbench("why", *as_options(**given, at=[0] * (dims + 1)))
    assert "is no voxel of the image" in wrong
