"""Pictures of every kind through inference: the right pixels, or the file's name and what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.commands import input_error, run

pytestmark = pytest.mark.workflow


def disk() -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of 40 rows and 48 columns with a bright disk, and the disk."""
    y, x = np.indices((40, 48))
    inside = (y - 12) ** 2 + (x - 34) ** 2 < 60
    return (np.random.default_rng(0).integers(0, 5, inside.shape) + 160 * inside).astype(np.uint8), inside


def threshold(folder: Path, channels: int = 1) -> dict[str, Any]:
    """Settings of inference with a network that says class 1 above the mean of the image."""
    layer = torch.nn.Conv2d(channels, 2, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()  # type: ignore[union-attr]
        layer.weight[1] = 4.0
    torch.save(layer.state_dict(), folder / "threshold.pt")
    network = {"_target_": "torch.nn.Conv2d", "in_channels": channels, "out_channels": 2, "kernel_size": 1}
    task = {
        "spatial_dims": 2,
        "in_channels": channels,
        "labels": {"background": 0, "bright": 1},
        "patch_size": [32, 32],
        "output_ext": ".png",
        "geometry": [],
        "amp": False,
        "network_def": network,
    }
    (folder / "threshold.json").write_text(json.dumps(task), encoding="utf-8")
    return {
        "checkpoint": str(folder / "threshold.pt"),
        "dataset_dir": str(folder / "images"),
        "output_dir": str(folder / "out"),
        "device": "cpu",
        "runtime": "torch",
    }


def test_pictures_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture, inside = disk()
    images = tmp_path / "images"
    images.mkdir()
    kinds = ("int8", "int16", "uint16", "int32", "uint32", "uint64", "float16", "float32", "float64")
    for kind in kinds:  # with numbers below 0 where there are any
        low = 0 if kind.startswith("u") else 100
        tifffile.imwrite(
            images / f"{kind}.tif", (picture.astype(np.int16) - low).clip(-128, 127).astype(kind)
        )
    tifffile.imwrite(images / "white.tif", picture, photometric="miniswhite")
    Image.fromarray(picture).save(images / "lzw.tif", compression="tiff_lzw")
    sound = [*kinds, "white", "lzw"]
    for orientation in (3, 6):
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(images / f"turned_{orientation}.tif", picture, extratags=tag)
    five = np.stack([picture] * 5, -1)
    tifffile.imwrite(images / "five.tif", five, photometric="minisblack", planarconfig="contig")
    settings = threshold(tmp_path)
    with pytest.raises(RuntimeError) as raised:
        run("inference", str(tmp_path / "threshold.json"), **settings)
    assert "3 of 14 images were not segmented: five, turned_3, turned_6" in input_error(raised.value)
    log = "".join(capsys.readouterr())
    for words in (
        "turned_3.tif: found the TIFF Orientation 3",
        "turned_6.tif: found the TIFF Orientation 6",
        "five.tif: found a picture with 5 channels; a grey image (in_channels=1) is expected",
    ):
        assert words in log
    assert "corrupt" not in log
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{name}_seg.png" for name in sound}
    for name in sound:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{name}_seg.png")), inside)


def test_colour_of_16_bits(tmp_path: Path) -> None:
    picture, inside = disk()
    images = tmp_path / "images"
    images.mkdir()
    low = np.stack([picture] * 3, -1).astype(np.uint16)  # black where the low byte is dropped
    for name, values in (("low", low), ("camera", low * 16)):
        tifffile.imwrite(images / f"{name}.tif", values, photometric="rgb")
    run("inference", str(tmp_path / "threshold.json"), **threshold(tmp_path, channels=3))
    for name in ("low", "camera"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / f"{name}_seg.png")), inside)
