"""Every network of `configs/network` as a file of every format, in two and three dimensions."""

from __future__ import annotations

import json
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from bundle.runs.experiments import parser_of
from bundle.ship.export import Model, read_model, tile_sizes, write
from scripts.compute.exported import Exported
from scripts.networks.heads import main_logits
from scripts.recipe import for_inference
from tests.configs.test_networks import CASES, files_of, network_of, shaken, small, small_ids
from tests.workflows.test_export import MADE, TOLERANCE

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime", "openvino"))),
        reason="needs requirements-runtimes.txt",
    ),
    pytest.mark.filterwarnings("ignore"),
]

#: A runtime that sums in another order may lie further from the network, by so many times the network's own
#: rounding in single precision: the logarithm of a small distance (dual_decoder) makes that large.
ROUNDINGS = 8

NO_TORCHSCRIPT = {"torchscript": "model.ts could not be made"}
MAMBA = {"torchscript": "a network with Mamba layers is not traced"}
DIFFUSION = "a diffusion network is not exported"
SWIN = "SwinUNETR is not exported"

#: What cannot be exported, as docs/export.md has it: overlay (with its dimension, where the other can be),
#: formats, and what is said of each.
NOT_EXPORTED: dict[str, dict[str, str]] = {
    "diffusion": {**dict.fromkeys(MADE, DIFFUSION), **NO_TORCHSCRIPT},
    "inception-3D": {"pt2": "model.pt2 could not be made"},
    "mednext": NO_TORCHSCRIPT,
    "pretrained_efficientnet": NO_TORCHSCRIPT,
    "pretrained_resnet": NO_TORCHSCRIPT,
    "unet_mamba": MAMBA,
    "swinunetr": {**dict.fromkeys(MADE, SWIN), **NO_TORCHSCRIPT},
    "transunet": {"pt2": "model.pt2 could not be made", **NO_TORCHSCRIPT},
    "umamba": MAMBA,
    "punet": MAMBA,
}


def model_of(name: str, dims: int, folder: Path) -> Model:
    """A small network of an overlay, none of whose weights is zero or one."""
    case = small(name, dims)
    ids: dict[str, Any] = {**small_ids(name, dims), "patch_size": list(case.size)}
    experiment = {"config_file": [str(file) for file in files_of(name)], **ids, "output_dir": str(folder)}
    (folder / "experiment.json").write_text(json.dumps(experiment))
    config = ConfigParser(for_inference(parser_of(experiment).get()))
    torch.save(shaken(network_of(config)).state_dict(), folder / "model.pt")
    return read_model(folder / "experiment.json", {}, None, folder)


@pytest.mark.parametrize(("name", "dims"), CASES, ids=[f"{name}-{dims}D" for name, dims in CASES])
def test_every_format_gives_the_networks_logits_or_says_why_not(name: str, dims: int, tmp_path: Path) -> None:
    model = model_of(name, dims, tmp_path)
    reasons = NOT_EXPORTED.get(name, {}) | NOT_EXPORTED.get(f"{name}-{dims}D", {})
    wrong: dict[str, str] = {}
    for chosen in MADE:
        result = write(chosen, model, tmp_path / "out")
        if chosen in reasons:
            assert reasons[chosen] in result.note
            continue
        wrong |= {chosen: _difference(model, result.files) if result.files else result.note}
    assert {chosen: said for chosen, said in wrong.items() if said} == {}


def _difference(model: Model, files: list[Path]) -> str:
    """Where the logits of a file are not those of the network; "" where they are."""
    exported = Exported(str(files[0]), model.network)
    for number, *size in tile_sizes(model):
        tiles = torch.randn((number, 1, *size), generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            expected = main_logits(model.network(tiles))
        try:
            found = exported(tiles)
        except Exception as error:  # every runtime has its own
            return f"{number, *size}: {' '.join(str(error).split())[:300]}"
        apart = _apart(found, expected)
        if not apart < TOLERANCE and not apart < ROUNDINGS * _rounding(model, tiles, expected):
            return f"{number, *size}: {apart:.2g} of the largest logit"
    return ""


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def _rounding(model: Model, tiles: Tensor, expected: Tensor) -> float:
    """How far the network's own logits are from those in double precision."""
    with torch.no_grad():
        return _apart(expected, main_logits(deepcopy(model.network).double()(tiles.double())))
