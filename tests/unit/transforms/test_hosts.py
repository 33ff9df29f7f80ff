"""What a server needs of transforms that it runs one by one."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, Spacingd

from scripts.transforms import IsolatedSpacingd, ToLabelMapd


@pytest.fixture
def case(tmp_path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = nib.Nifti1Image(rng.normal(size=(6, 7, 8)).astype(np.float32), np.diag([1.0, 1.5, 0.8, 1.0]))
    nib.save(image, tmp_path / "image.nii.gz")
    return {"image": str(tmp_path / "image.nii.gz")}


def resampled(spacing: type[Spacingd], case: dict[str, Any], **options: Any) -> tuple[Compose, dict]:
    load = [LoadImaged("image", **options), EnsureChannelFirstd("image")]
    transform = Compose([*load, spacing("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear")])
    return transform, transform(case)


def test_spacing_is_that_of_monai_and_goes_back(case):
    transform, own = resampled(IsolatedSpacingd, case)
    theirs = resampled(Spacingd, case)[1]
    assert own["image"].shape == (1, 6, 10, 7)
    torch.testing.assert_close(own["image"], theirs["image"], rtol=0, atol=0)
    torch.testing.assert_close(own["image"].affine, theirs["image"].affine, rtol=0, atol=0)
    own["pred"] = MetaTensor(torch.ones(own["image"].shape))
    back = Invertd("pred", transform=transform, orig_keys="image")(own)["pred"]
    assert back.shape == (1, 6, 7, 8)
    assert (back == 1).all()


def test_pictures_are_resampled_with_their_labels_and_go_back():
    """A picture has two axes whatever its affine."""
    case = {key: MetaTensor(torch.ones(1, 21, 31)) for key in ("image", "label")}
    transform = Compose(
        [IsolatedSpacingd(["image", "label"], pixdim=[2.0, 2.0], mode=["bilinear", "nearest"])]
    )
    case["image"].spatial_ndim = case["label"].spatial_ndim = 2
    out = transform(case)
    assert out["image"].shape == out["label"].shape == (1, 11, 16)
    assert len(out["image"].pixdim) == 2
    out["pred"] = out["image"].clone()
    assert Invertd("pred", transform=transform, orig_keys="image")(out)["pred"].shape == (1, 21, 31)


@pytest.mark.parametrize("size", [4e-5, 1e-3, 0.7, 300.0])
def test_voxels_of_any_size_are_resampled_and_go_back(size):
    """Every second voxel of a ramp is left; MONAI takes lengths less than 0.001 mm apart for equal."""
    ramp = torch.arange(21.0)[None, :, None, None].expand(1, 21, 4, 3).clone()
    affine = torch.diag(torch.tensor([size, size, size, 1], dtype=torch.float64))
    transform = Compose([IsolatedSpacingd("image", pixdim=[2 * size, size, size], mode="bilinear")])
    out = transform({"image": MetaTensor(ramp, affine=affine)})
    assert out["image"].shape == (1, 11, 4, 3)
    torch.testing.assert_close(
        out["image"][0, :, 0, 0].as_tensor(), torch.arange(0.0, 21, 2), rtol=0, atol=1e-4
    )
    sizes = np.array([2 * size, size, size])
    np.testing.assert_allclose(out["image"].pixdim, sizes, rtol=1e-9)
    out["pred"] = out["image"].clone()
    back = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=False)(out)["pred"]
    torch.testing.assert_close(back.as_tensor(), ramp, rtol=0, atol=1e-4)
    np.testing.assert_allclose(back.affine, affine, rtol=1e-9)


def test_spacing_leaves_alone_what_begins_with_the_same_letters(case):
    """The name of the file, and the meta data that LoadImaged puts beside the image when asked to."""
    given = {**case, "image_path": case["image"], "other": 3}
    out = resampled(IsolatedSpacingd, given, image_only=False)[1]
    assert out["image"].shape == (1, 6, 10, 7)
    assert (out["image_path"], out["other"]) == (case["image"], 3)
    with pytest.raises((AttributeError, RuntimeError)):  # MONAI mends it: then ours can go
        resampled(Spacingd, given, image_only=False)


@pytest.mark.parametrize(
    ("values", "dtype", "shape"),
    [
        (torch.tensor([[[0, 1, 255]]]), np.uint8, (1, 3)),
        (torch.tensor([[[0, 1, 256]]], dtype=torch.int32), np.uint16, (1, 3)),
        (MetaTensor(torch.ones(1, 2, 3, 4, dtype=torch.int32)), np.uint8, (1, 2, 3, 4)),
        (torch.full((1, 2, 3), 0.5), np.float32, (2, 3)),
    ],
)
def test_label_map_is_small_and_a_picture_flat(values, dtype, shape):
    out = ToLabelMapd("pred")({"pred": values, "image": 1})
    assert type(out["pred"]) is np.ndarray
    assert (out["pred"].dtype, out["pred"].shape, out["image"]) == (dtype, shape, 1)
    np.testing.assert_array_equal(out["pred"].ravel(), np.asarray(values).ravel())
