"""Left and right in the names of classes."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.transforms import RandAxisFlipd, RandFlipd, RandRotate90d

from scripts.compute.inferers import AveragedOrientations
from scripts.sides import sided_names, warn_of_mirrored_sides
from scripts.transforms import RandSpatialPatchd
from tests.commands import config_files


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["background", "kidney_left", "kidney_right", "liver"], ["kidney_left", "kidney_right"]),
        (["Left-Hippocampus"], ["Left-Hippocampus"]),
        (["lungL", "lungR", "heart"], ["lungL", "lungR"]),
        (["LKidney", "RKidney"], ["LKidney", "RKidney"]),
        (["L_kidney", "liver"], []),
        (["ctx-lh-insula", "ctx-rh-insula"], ["ctx-lh-insula", "ctx-rh-insula"]),
        (["linke Niere", "rechte Niere"], ["linke Niere", "rechte Niere"]),
        (["ren sinister", "ren dexter"], ["ren sinister", "ren dexter"]),
        (["rein gauche", "rein droit"], ["rein gauche", "rein droit"]),
        (["rene dx", "rene sin"], ["rene dx", "rene sin"]),
        (["L", "R"], ["L", "R"]),
        (["vertebra_L1", "vertebra_L2", "vertebra_R1"], []),
        (["atrium_left2"], ["atrium_left2"]),
        (["uprights", "brightness", "leftover", "anterior"], []),
    ],
)
def test_names_that_say_a_side(names: list[str], expected: list[str]) -> None:
    assert sided_names(names) == expected


PATCH = {"keys": ["image", "label"], "modes": ["bilinear", "nearest"], "patch_size": [8, 8, 8]}


@pytest.mark.parametrize(
    ("transform", "told"),
    [
        (RandSpatialPatchd(**PATCH, flip_axes=[0]), True),
        (RandSpatialPatchd(**PATCH, flip_axes=[1, 2]), False),
        (RandFlipd("image", spatial_axis=0), True),
        (RandFlipd("image"), True),
        (RandFlipd("image", spatial_axis=[1, 2]), False),
        (RandAxisFlipd("image"), True),
        (RandRotate90d("image"), False),
    ],
)
def test_mirrored_sides_are_told(transform: object, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_mirrored_sides([transform], {"background": 0, "anterior": 1})
    assert not caplog.records
    warn_of_mirrored_sides([transform], {"background": 0, "left": 1, "right": 2})
    assert ["left, right say left or right" in record.getMessage() for record in caplog.records] == [
        True
    ] * told


def test_a_training_looks_at_its_own_flips(caplog: pytest.LogCaptureFixture) -> None:
    parser = ConfigParser()
    parser.read_config(config_files("train"))
    parser["labels"] = {"background": 0, "left": 1, "right": 2}
    assert "$@sides" in parser["run"]
    parser.get_parsed_content("sides")
    assert "--flip_axes" in caplog.text
    caplog.clear()
    parser["flip_axes"] = []
    parser.parse(reset=True)
    parser.get_parsed_content("sides")
    assert not caplog.records


def test_no_version_of_the_image_is_mirrored_from_left_to_right(caplog: pytest.LogCaptureFixture) -> None:
    """The network says class 1 on the left half, wherever it is shown: the mean keeps its side."""

    def left(image: torch.Tensor) -> torch.Tensor:
        shown = torch.zeros_like(image)
        shown[:, :, : image.shape[2] // 2] = 9.0
        return torch.cat([-shown, shown], dim=1)

    image = torch.zeros(1, 1, 8, 6, 4)
    labels = {"background": 0, "left": 1, "right": 2}
    kept = AveragedOrientations(SimpleInferer(), [0, 1, 2], labels=labels)(image, left)
    assert torch.equal(kept.argmax(1), left(image).argmax(1))
    assert "no version of the image is mirrored" in caplog.text
    square = AveragedOrientations(SimpleInferer(), [0, 1], transpose=True, labels=labels)
    assert torch.equal(square(image[..., 0], left).argmax(1), left(image[..., 0]).argmax(1))
    blurred = AveragedOrientations(SimpleInferer(), [0, 1, 2])(image, left)
    assert not torch.equal(blurred.argmax(1), left(image).argmax(1))
