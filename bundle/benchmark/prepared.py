"""All cases of a training as they are before its random transforms: computed, or from the files of before."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import Dataset, PersistentDataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, NormalizeIntensityd, Orientationd

from bundle.benchmark.runner import OURS, Contest, Entry, largest_difference
from bundle.data.phantom import Kind, write_phantom
from scripts.data import CachedCases, LoadLabeld, Prepared
from scripts.transforms import IsolatedSpacingd

#: Cases, and voxels of a case.
CASES, SIZE = 10, (128, 128, 64)
SMALL: tuple[int, tuple[int, ...]] = (4, (24, 25, 26))

#: Edges of the voxels that they are brought to, in mm.
SPACING = 1.0


def contests(small: bool, device: torch.device) -> list[Contest]:
    """A contest of data sets; on the CPU, whatever the device.

    Args:
        small: few small cases.
        device: not used.
    """
    cases, size = SMALL if small else (CASES, SIZE)
    computed = "CachedCases, cache_gb 0"
    ways: dict[str, tuple[Callable[..., Any], str]] = {
        computed: (_computed, OURS),
        "PersistentDataset, written before": (_persistent, "MONAI"),
        "CachedCases, prepared before": (_prepared, OURS),
    }
    entries = {
        name: Entry(partial(way, cases, size), origin, reference=computed)
        for name, (way, origin) in ways.items()
    }
    return [
        Contest(
            "prepared: all cases before their random transforms",
            f"{cases} volumes of {' x '.join(map(str, size))}, .nii.gz, brought to {SPACING:g} mm and held; "
            "the sum of each image and label is taken",
            entries,
            agreement="off by",
            compare=largest_difference,
        )
    ]


def _computed(cases: int, size: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """Each case loaded, resampled and normalised."""
    _, data, steps = _data(cases, size)
    return lambda: _sums(CachedCases(data, steps))


def _prepared(cases: int, size: tuple[int, ...]) -> Callable[[], np.ndarray]:
    place, data, steps = _data(cases, size)

    def work() -> np.ndarray:
        return _sums(CachedCases(data, steps, prepared=Prepared(100, str(place / "prepared"))))

    work()
    return work


def _persistent(cases: int, size: tuple[int, ...]) -> Callable[[], np.ndarray]:
    place, data, steps = _data(cases, size)

    def work() -> np.ndarray:
        dataset = PersistentDataset(data, steps, cache_dir=place / "persistent")
        return _sums(dataset)

    work()
    return work


def _data(cases: int, size: tuple[int, ...]) -> tuple[Path, list[dict[str, str]], Compose]:
    """A folder, which goes with this process, cases in it and transforms."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    place = Path(folder.name)
    write_phantom(Kind.ORGAN, place, cases=cases, size=size)
    images, labels = (sorted(place.glob(f"{kind}T*/*.nii.gz")) for kind in ("images", "labels"))
    data = [
        {"case": image.name, "image": str(image), "label": str(label)}
        for image, label in zip(images, labels, strict=True)
    ]
    both = ("image", "label")
    steps = [
        LoadImaged("image", reader="scripts.data.ImageReader"),
        EnsureChannelFirstd("image"),
        LoadLabeld("label", {}, instances=True),
        Orientationd(both, axcodes="RAS", labels=None),
        IsolatedSpacingd(both, pixdim=[SPACING] * 3, mode=("bilinear", "nearest")),
        NormalizeIntensityd("image", channel_wise=True),
    ]
    return place, data, Compose(steps)


def _sums(dataset: Dataset) -> np.ndarray:
    """Of each image and label, so that all of it is read."""
    items = [dataset[index] for index in range(len(dataset))]
    return np.array([[float(item[key].double().sum()) for key in ("image", "label")] for item in items])
