"""Many classes: from an image to a class map on the grid of its file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, Orientationd, Spacingd
from monai.utils import MetaKeys
from torch import Tensor, nn

from bundle.benchmark.runner import OURS, Contest, Entry
from scripts.compute.classmaps import straight
from scripts.compute.inferers import SlidingWindowSlabInferer

#: Voxels along every axis, classes, window.
SIZE, CLASSES, TILE = 128, 50, 64
SMALL = (18, 5, 16)

#: Edge of a voxel of the file; the network sees voxels of 1 mm.
GRIDS = {"as the network sees it": 1.0, "resampled": 0.8}


def contests(small: bool, device: torch.device) -> list[Contest]:
    """A volume on the network's own grid, and one that is brought there; on the CPU, whatever the device.

    Args:
        small: tiny sizes.
        device: not used.
    """
    size, classes, tile = SMALL if small else (SIZE, CLASSES, TILE)
    made = []
    for name, edge in GRIDS.items():
        make = partial(_work, size, classes, tile, edge)
        entries = {
            f"logits of the whole image, {allocator}": Entry(
                partial(make, False), "MONAI", allocator, reference="logits of the whole image, default"
            )
            for allocator in ("default", "tuned")
        }
        reference = "logits of the whole image, default"
        entries["a slab at a time"] = Entry(partial(make, True), OURS, "tuned", reference=reference)
        made.append(
            Contest(
                f"classes: {classes} classes in {size} x {size} x {size}, {name}",
                f"one convolution, windows of {tile} x {tile} x {tile}, overlap 0.25, Gaussian; "
                f"probabilities are brought to a file of {edge:g} mm before the most probable class is taken",
                entries,
                agreement="same class",
                compare=lambda labels, reference: float(np.mean(labels == reference)),
            )
        )
    return made


def _work(size: int, classes: int, tile: int, edge: float, ours: bool) -> Callable[[], Tensor]:
    network = nn.Conv3d(1, classes, 3, padding=1).eval()
    shape = (round(size / edge),) * 3
    affine = np.diag([edge, edge, edge, 1.0])
    meta = {MetaKeys.ORIGINAL_AFFINE: affine, MetaKeys.SPATIAL_SHAPE: np.array(shape)}
    volume = MetaTensor(torch.randn(1, *shape), affine=torch.from_numpy(affine), meta=meta)
    before = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
        ]
    )
    after: Callable = Compose(
        [
            Activationsd("pred", softmax=True),
            Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted("pred", argmax=True),
        ]
    )
    monais = SlidingWindowInferer(tile, overlap=0.25, mode="gaussian")
    slabs = SlidingWindowSlabInferer(tile, overlap=0.25, mode="gaussian")
    inferer, after = straight(slabs, after) if ours else (monais, after)
    batch = list_data_collate([before({"image": volume})])

    def work() -> Tensor:
        with torch.no_grad():
            pred = inferer(batch["image"], network)
        (case,) = decollate_batch({"image": batch["image"], "pred": pred})
        return after(case)["pred"].as_tensor().to(torch.uint8)

    return work
