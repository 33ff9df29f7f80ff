"""A network in a file is, to everybody else, the network that was exported."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from scripts.compute import exported, runtimes
from scripts.compute.exported import Exported
from scripts.compute.inferers import OverlapTileInferer
from scripts.errors import InputError
from scripts.files import sha256
from scripts.networks import UNet, output_size

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def unet(seed: int, padding: str = "same") -> UNet:
    torch.manual_seed(seed)
    return UNet(spatial_dims=2, in_channels=1, out_channels=3, channels=(2, 4), padding=padding, norm=None)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Valid convolutions, scripted: the file checks no sizes."""
    torch.jit.script(unet(1, "valid").eval()).save(tmp_path / "model.ts")
    return str(tmp_path / "model.ts")


def test_the_file_computes_and_the_network_tells_the_sizes(file: str) -> None:
    expected = unet(1, "valid").eval()
    network = Exported(file, unet(2, "valid"))
    image = torch.rand(2, 1, 28, 32)
    with torch.no_grad():
        assert torch.equal(network(image), expected(image))
        assert torch.equal(network(MetaTensor(image)), expected(image))
    assert output_size(network, (28, 32)) == (12, 16) == tuple(network(image).shape[2:])
    whole = torch.rand(1, 1, 40, 50)
    tiles = OverlapTileInferer((28, 32))
    torch.testing.assert_close(tiles(whole, network), tiles(whole, expected))
    with pytest.raises(InputError, match=r"input size \(27, 32\) does not fit the network"):
        network(torch.rand(1, 1, 27, 32))


def test_what_it_needs_is_not_counted(file: str) -> None:
    tiles = OverlapTileInferer((28, 32), memory_gb=1.0)
    with pytest.raises(InputError, match=r"memory_gb is 1\.0, a budget .* leave it out .* with an exported"):
        tiles(torch.rand(1, 1, 40, 50), Exported(file, unet(2, "valid")))


def test_what_cannot_be_loaded_is_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("broken.pt2", "broken.ts", "model.pt"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(
        InputError, match=r"model\.pt: an exported network ends in \.pt2, \.ts, \.onnx, \.xml"
    ):
        Exported(str(tmp_path / "model.pt"), unet(1))
    with pytest.raises(InputError, match=r"none\.ts, which is not there: run python -m bundle export"):
        Exported(str(tmp_path / "none.ts"), unet(1))
    for name in ("broken.pt2", "broken.ts"):
        with pytest.raises(InputError, match=rf"{name}, which torch cannot read \(.*\): export it again"):
            Exported(str(tmp_path / name), unet(1))
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    monkeypatch.setattr(exported, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"onnxruntime is not installed: run pip install -r requirements-run"
    ):
        Exported(str(tmp_path / "model.onnx"), unet(1))


@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
def test_weights_that_are_not_those_that_were_written_are_refused(tmp_path: Path) -> None:
    import openvino

    model = openvino.convert_model(unet(1).eval(), example_input=torch.rand(1, 1, 8, 8))
    openvino.save_model(model, file := tmp_path / "model.xml", compress_to_fp16=False)
    weights = file.with_suffix(".bin")
    facts = {"weights": {one.name: sha256(one) for one in (file, weights)}}
    (tmp_path / "metadata.json").write_text(json.dumps(facts))
    Exported(str(file), unet(1))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.bin is not what was written with model\.xml, by"):
        Exported(str(file), unet(1))


def test_int8_is_refused_where_a_level_has_one_voxel(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "has_amx", lambda: True)
    network = Exported(file, Strided())
    network.rounded = True
    with pytest.raises(InputError, match=r"one voxel along the last axis of tiles of \[8, 2\].*larger tiles"):
        network(torch.rand(1, 1, 8, 2))


class Strided(torch.nn.Sequential):
    """A stride, and nothing else."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(1, 2, 3, stride=2, padding=1))
