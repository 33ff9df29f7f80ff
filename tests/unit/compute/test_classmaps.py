"""Class maps straight from slabs are those of the whole postprocessing, in less memory."""

from __future__ import annotations

import copy
import multiprocessing
import resource
import sys
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    CenterSpatialCropd,
    Compose,
    Invertd,
    Orientationd,
    SaveImaged,
)
from monai.utils import MetaKeys

from scripts.compute.classmaps import ClassMaps, OnFileGridd, straight
from scripts.compute.inferers import AveragedOrientations, SlidingWindowSlabInferer, most_probable
from scripts.data.cases import is_out_of_memory
from scripts.errors import root_cause
from scripts.transforms import IsolatedSpacingd
from tests.unit.compute.test_streaming import GRIDS, make_affine

#: Grids of files, spacing of the network, and whether classes come straight.
CASES = [*GRIDS, ("RAS", (0.01, 0.012, 0.02), (0.013, 0.013, 0.013))]


def image_on(affine: np.ndarray, shape: tuple[int, ...] = (17, 20, 14)) -> MetaTensor:
    """Noise, with the meta data that our reader gives."""
    meta = {MetaKeys.ORIGINAL_AFFINE: affine.copy(), MetaKeys.SPATIAL_SHAPE: np.array(shape)}
    values = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    return MetaTensor(values, affine=torch.from_numpy(affine), meta=meta)


def geometry(spacing: Any) -> Compose:
    keys = ["image"]
    turn = Orientationd(keys, axcodes="RAS", labels=None)
    return Compose([turn, IsolatedSpacingd(keys, pixdim=spacing, mode="bilinear")])


def postprocessing(preprocessing: Compose, keys: Any = "pred") -> Compose:
    """That of configs/inference.json, and with two keys that of configs/evaluate.json."""
    invert = Invertd(keys, preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
    return Compose([Activationsd("pred", softmax=True), invert, AsDiscreted("pred", argmax=True)])


def network(classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, classes, 3, padding=1).eval()


def results(inferer: Any, after: Any, image: MetaTensor, net: torch.nn.Module) -> tuple[Any, Any]:
    """What the inferer gives for an image, and what comes out at the end."""
    batch = list_data_collate([{"image": image}])["image"]
    given = inferer(batch, net)
    (pred,) = decollate_batch(given)
    return given, after({"image": copy.deepcopy(image), "pred": pred})


@pytest.mark.parametrize("keys", ["pred", ("pred", "image")])
@pytest.mark.parametrize(("axcodes", "spacing", "wanted"), CASES)
def test_the_same_classes_on_the_same_grid(axcodes: str, spacing: Any, wanted: Any, keys: Any) -> None:
    preprocessing = geometry(wanted)
    image = preprocessing({"image": image_on(make_affine(spacing, axcodes))})["image"]
    inferer = SlidingWindowSlabInferer((8, 12, 10), overlap=0.5, mode="gaussian")
    after, net = postprocessing(preprocessing, keys), network(5)
    whole, expected = results(inferer, after, image, net)
    given, found = results(*straight(inferer, after), image, net)
    assert (whole.shape[1], given.shape[1], given.dtype) == (5, 1, torch.uint8)
    assert len(found["pred"].unique()) == 5
    for key in ("pred", "image"):
        one, other = found[key], expected[key]
        assert one.dtype == other.dtype
        assert torch.equal(one.as_tensor(), other.as_tensor()), key
        torch.testing.assert_close(one.affine, other.affine, atol=1e-4, rtol=0)
        assert len(one.applied_operations) == len(other.applied_operations)
    assert found["pred"].meta.keys() == expected["pred"].meta.keys()


def sheared() -> np.ndarray:
    affine = make_affine((1, 1, 2), "LPS")
    affine[:3, 2] += 0.3 * affine[:3, 0]
    return affine


@pytest.mark.parametrize("kind", ["shear", "crop"])
def test_what_is_no_matter_of_planes_goes_the_long_way(kind: str) -> None:
    preprocessing = geometry((1, 1, 1))
    if kind == "crop":
        preprocessing = Compose([*preprocessing.transforms, CenterSpatialCropd("image", (9, 9, 9))])
    affine = sheared() if kind == "shear" else make_affine((1, 1, 1))
    image = preprocessing({"image": image_on(affine)})["image"]
    inferer = SlidingWindowSlabInferer((8, 12, 10), overlap=0.5)
    after, net = postprocessing(preprocessing), network(3)
    _, expected = results(inferer, after, image, net)
    given, found = results(*straight(inferer, after), image, net)
    assert given.shape[1] == 3
    assert torch.equal(found["pred"].as_tensor(), expected["pred"].as_tensor())


def test_a_picture_without_geometry() -> None:
    torch.manual_seed(0)
    net, image = torch.nn.Conv2d(1, 4, 3, padding=1).eval(), MetaTensor(torch.randn(1, 21, 34))
    after = Compose([Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)])
    inferer = SlidingWindowSlabInferer((16, 16), overlap=0.25)
    _, expected = results(inferer, after, image, net)
    given, found = results(*straight(inferer, after), image, net)
    assert given.dtype == torch.uint8
    assert torch.equal(found["pred"].as_tensor(), expected["pred"].as_tensor())


def test_whoever_asks_for_probabilities_gets_them() -> None:
    """Another first step, another step between, argmax that does more, an inferer that needs all of them."""
    softmax, invert, argmax = postprocessing(geometry((1, 1, 1))).transforms
    inferer = SlidingWindowSlabInferer((8, 8, 8))
    nearest = copy.copy(invert)
    nearest.nearest_interp = (True,)
    for steps in (
        [invert, argmax],
        [Activationsd("pred", sigmoid=True), invert, argmax],
        [softmax, invert, SaveImaged("pred"), argmax],
        [softmax, nearest, argmax],
        [softmax, invert, AsDiscreted("pred", argmax=True, to_onehot=3)],
        [softmax, invert],
        [softmax],
        [],
    ):
        after = Compose(steps)
        assert straight(inferer, after) == (inferer, after)
    averaged = AveragedOrientations(inferer, (0,))
    same, after = straight(averaged, Compose([softmax, invert, argmax]))
    assert same is averaged
    assert isinstance(after.transforms[0], OnFileGridd)  # type: ignore[attr-defined]
    made, _ = straight(inferer, Compose([softmax, invert, argmax]))
    assert isinstance(made, ClassMaps)


def test_most_probable_is_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.compute.inferers.AT_ONCE", 300)
    values = torch.randint(0, 5, (7, 11, 9, 13), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(most_probable(values).long(), values.argmax(0))  # the first of equals


#: Classes, voxels along each axis and window: whole logits take 83 MB, a slab of them 19 MB.
MANY, LENGTH, WINDOW = 40, 80, 16
HEADROOM = 100e6


def _within(connection: Any) -> None:
    """Both ways, with no more memory than there is now and some: what came of them."""
    torch.set_num_threads(1)
    with open("/proc/self/status") as file:
        held = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(held + HEADROOM),) * 2)
    preprocessing = geometry((1, 1, 1))
    after, net = postprocessing(preprocessing), torch.nn.Conv3d(1, MANY, 1).eval()
    inferer = SlidingWindowSlabInferer((WINDOW,) * 3, overlap=0.25, mode="gaussian")
    for affine in (np.diag([1.0, -1, 1, 1]), np.diag([1.25, 1.25, 1.25, 1])):
        length = round(LENGTH / affine[0, 0])
        image = preprocessing({"image": image_on(affine, (length,) * 3)})["image"]
        for way in (straight(inferer, after), (inferer, after)):
            try:
                connection.send(tuple(results(*way, image, net)[1]["pred"].shape))
            except Exception as error:
                connection.send("not enough memory" if is_out_of_memory(root_cause(error)) else repr(error))


@pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
def test_logits_of_the_whole_image_are_never_held() -> None:
    """On the grid of the file and on another; the long way fails there.

    In a process that begins anew: a fork has what earlier tests freed, which is within its limit.
    """
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_within, args=(there,))
    process.start()
    came = [here.recv() for _ in range(4) if here.poll(60)]
    process.join(60)
    assert came == [(1, 80, 80, 80), "not enough memory", (1, 64, 64, 64), "not enough memory"]
