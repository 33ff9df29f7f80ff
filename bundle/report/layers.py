"""Cases as they are looked at: image, truth, prediction and uncertainty on one grid, as layers for a browser.

The prediction is filled, the truth is an outline, both in the colours of `scripts.pictures`, so that both are
seen at once. Volumes become NIfTI files for a viewer, pictures PNG files that lie on each other.
"""

from __future__ import annotations

import base64
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage.segmentation import find_boundaries

from scripts.data.checks import read_label
from scripts.data.grids import Grid, turn_onto, turned
from scripts.data.reader import columns_first, grid_of, is_picture, read_file
from scripts.judging import Case
from scripts.judging.files import Pair, read_classes, read_instances
from scripts.labels import IGNORE_NAME
from scripts.pictures import CLASS_COLOURS, distinct_colours, shown
from scripts.uncertainty import predictive_entropy

Row = dict[str, Any]

#: An axis of fewer voxels keeps them all where others are left out.
SHORT_AXIS = 64

#: Percentiles of the intensities that are shown as black and white.
WINDOW = (0.5, 99.5)

#: Names of the layers, from the lowest.
LAYERS = ("image", "prediction", "truth", "uncertainty")


@dataclass(frozen=True)
class Shown:
    """A case to be looked at, all of it on the grid of its segmentation.

    Attributes:
        role: "worst", "median", "best"; where nobody judged "smallest", "median", "largest".
        case: class indices or numbers of objects; without a truth that is the prediction.
        image: `scripts.pictures.shown` of it, (*spatial) or (3, X, Y); None where it is not known.
        judged: there is a truth.
        instances: numbers of objects.
        uncertainty: 0 sure, 1 not at all, (*spatial); None where nothing was kept.
        affine: from voxels to mm; None of a picture.
    """

    role: str
    case: Case
    image: np.ndarray | None
    judged: bool
    instances: bool
    uncertainty: np.ndarray | None
    affine: np.ndarray | None

    @property
    def is_volume(self) -> bool:
        """Whether it has three dimensions."""
        return self.case.pred.ndim == 3


def read_shown(
    role: str,
    case: Mapping[str, Any],
    files: Mapping[str, Path],
    labels: Mapping[str, int],
    instances: bool,
) -> Shown:
    """Read a case.

    Args:
        role: see `Shown`.
        case: "case", and where they are known "image" and "label".
        files: "seg", and where they are there "spread" and "prob".
        labels: name to value; empty: any values.
        instances: labels number objects.

    Raises:
        Fault: a file that cannot be read, or lies on another grid.
    """
    name, pred = str(case["case"]), files["seg"]
    label = case.get("label")
    values, grid = read_label(Path(label or pred), None, instances)
    if label and instances:
        judged = read_instances(Pair(name, pred, Path(label)), labels.get(IGNORE_NAME))
    elif label:
        judged = read_classes(Pair(name, pred, Path(label)), labels or _as_found(values))
    else:
        found = values if instances else _indices(values, labels or _as_found(values))
        judged = Case(name, found, found, spacing=grid.spacing)
    image = case.get("image")
    first = image[0] if isinstance(image, list) else image
    return Shown(
        role,
        judged,
        None if first is None else shown(_onto(Path(first), grid), first),
        bool(label),
        instances,
        _uncertainty(files, grid),
        grid.affine,
    )


def _as_found(values: np.ndarray) -> dict[str, int]:
    return {str(value): int(value) for value in np.unique(values).tolist()}


def _indices(values: np.ndarray, labels: Mapping[str, int]) -> np.ndarray:
    """Class indices of values; what is no class is background."""
    found = np.zeros(values.shape, np.int32)
    for index, value in enumerate(value for name, value in labels.items() if name != IGNORE_NAME):
        found[values == value] = index
    return found


def _onto(path: Path, grid: Grid) -> np.ndarray:
    """Values of a file, (channels, *spatial), in the order of a grid."""
    file = read_file(path)
    values = columns_first(file) if grid.affine is None else file.values
    own = Grid(values.shape[: len(grid.shape)], None if grid.affine is None else grid_of(file).affine)
    values = turned(values, turn_onto(own, grid, "segmentation"))
    return np.moveaxis(values, -1, 0) if values.ndim > len(grid.shape) else values[None]


def _uncertainty(files: Mapping[str, Path], grid: Grid) -> np.ndarray | None:
    """How unsure, 0 to 1, (*spatial), of the map that was kept, or of the probabilities."""
    if "spread" in files:
        values = _onto(files["spread"], grid)[0].astype(np.float32)
        return values / 255 if is_picture(files["spread"]) else values
    if "prob" in files:
        values = _onto(files["prob"], grid).astype(np.float32)
        both = values if len(values) > 1 else np.concatenate([1 - values, values])
        return predictive_entropy(torch.from_numpy(both))[0].numpy()
    return None


def colours_of(case: Case, instances: bool) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth as indices of CLASS_COLOURS, uint8, (*spatial)."""
    if instances:
        truth = distinct_colours(case.truth)
        return distinct_colours(case.pred, truth), truth
    count = len(CLASS_COLOURS) - 1
    pred, truth = (
        np.where(part > 0, (part - 1) % count + 1, 0).astype(np.uint8) for part in (case.pred, case.truth)
    )
    return pred, truth


def thinned(shown: Shown, step: int) -> dict[str, np.ndarray]:
    """The layers of a case, every so many voxels.

    Args:
        shown: the case.
        step: 1 keeps all voxels; axes shorter than SHORT_AXIS keep theirs.

    Returns:
        "image", uint8, (*spatial) or (3, X, Y); "prediction" and, of a case that was judged, "truth", its
        outline, indices of CLASS_COLOURS; "uncertainty", uint8, 0 to 255.
    """
    pred, truth = colours_of(shown.case, shown.instances)
    where = tuple(slice(size // 2, None, size) for size in steps_of(shown, step))
    layers: dict[str, np.ndarray] = {}
    if shown.image is not None:
        layers["image"] = _grey(shown.image, steps_of(shown, step))
    layers["prediction"] = pred[where]
    if shown.judged:
        objects = (shown.case.truth if shown.instances else truth)[where]
        layers["truth"] = truth[where] * find_boundaries(objects, mode="inner")
    if shown.uncertainty is not None:
        layers["uncertainty"] = (shown.uncertainty[where].clip(0, 1) * 255).round().astype(np.uint8)
    return layers


def steps_of(shown: Shown, step: int) -> list[int]:
    """Voxels of each axis that one is shown of."""
    return [step if size > SHORT_AXIS else 1 for size in shown.case.pred.shape]


def _grey(image: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """Intensities as 0 to 255, means over the voxels that are left out."""
    coloured = image.ndim > len(steps)
    steps = [1, *steps] if coloured else list(steps)
    low, high = (0, 255) if coloured and image.dtype == np.uint8 else np.percentile(image, WINDOW)
    values = uniform_filter(image.astype(np.float32), steps) if max(steps) > 1 else image
    values = values[tuple(slice(size // 2, None, size) for size in steps)].astype(np.float32)
    return ((values - low) / max(high - low, 1e-6) * 255).clip(0, 255).round().astype(np.uint8)


def encoded(shown: Shown, step: int) -> dict[str, str]:
    """The layers of a case as files in base64: NIfTI (gzip) of a volume, PNG of a picture; see `thinned`."""
    layers = thinned(shown, step)
    if shown.is_volume:
        affine = np.eye(4) if shown.affine is None else shown.affine
        sizes = np.array(steps_of(shown, step))
        moved = affine @ np.block([[np.diag(sizes), (sizes // 2)[:, None]], [np.zeros(3), 1]])
        return {name: _volume(values, moved) for name, values in layers.items()}
    return {name: _picture(name, values) for name, values in layers.items()}


def _volume(values: np.ndarray, affine: np.ndarray) -> str:
    file = nib.Nifti1Image(values, affine).to_bytes()
    return base64.b64encode(gzip.compress(file, mtime=0)).decode()


def _picture(name: str, values: np.ndarray) -> str:
    """A layer as PNG; where it shows nothing it is clear."""
    if name == "image":
        picture = Image.fromarray(values.T)  # (3, X, Y) becomes (Y, X, 3)
    elif name == "uncertainty":
        red, green, blue = (np.full_like(values, part) for part in UNSURE)
        picture = Image.fromarray(np.stack([red, green, blue, values]).T)
    else:
        table = np.array([[0, 0, 0, 0], *([*rgb, 255] for rgb in palette())], np.uint8)
        picture = Image.fromarray(table[values.T])
    return png(picture)


#: Red, green and blue of what is not sure.
UNSURE = (255, 40, 160)


def palette() -> list[list[int]]:
    """Red, green and blue, 0 to 255, of the classes 1, 2, ..."""
    return [[round(255 * part) for part in to_rgb(colour)] for colour in CLASS_COLOURS[1:]]


def png(picture: Image.Image, most: float = math.inf) -> str:
    """A picture as PNG in base64, made smaller until it has at most so many bytes."""
    while True:
        content = io.BytesIO()
        picture.save(content, "PNG", optimize=True)
        if content.tell() <= most or min(picture.size) < 2:
            return base64.b64encode(content.getvalue()).decode()
        picture = picture.resize([max(1, round(0.8 * side)) for side in picture.size])  # type: ignore[arg-type]


def fitted(cases: Sequence[Shown], most: float) -> tuple[list[dict[str, str]], int]:
    """The layers of all cases in at most so many bytes.

    Args:
        cases: to be shown.
        most: bytes, in base64.

    Returns:
        Of each case its layers, and of how many voxels of an axis one is shown.
    """
    step = 1
    while True:
        layers = [encoded(case, step) for case in cases]
        size = sum(len(text) for each in layers for text in each.values())
        if size <= most or step >= max(max(case.case.pred.shape) for case in cases):
            return layers, step
        step = max(step + 1, int(step * (size / max(most, 1)) ** (1 / cases[0].case.pred.ndim)))
