"""What a trained network must beat: Otsu's threshold and connected components, helped by the truth.

Otsu 1979, "A Threshold Selection Method from Gray-Level Histograms". The help makes it a bound on what
thresholding could give, not a method anyone could run: the truth picks the polarity and names the components.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import typer
from scipy import ndimage
from skimage.filters import threshold_otsu

from scripts.data.datalist import sections
from scripts.data.names import output_path
from scripts.data.reader import image_suffix
from scripts.errors import InputError
from scripts.files import read_json
from scripts.judging import Case, mean_dice
from scripts.judging.files import Pair, read_image, read_values

SMOOTHING = 1.0  # deviation of the Gaussian before the threshold, in grid steps
MIN_COMPONENT = 30  # pixels or voxels; smaller components are dropped


def _name_components(foreground: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """Give each component the class it overlaps most; drop small ones and those that overlap none."""
    components, count = ndimage.label(foreground)
    pairs = np.bincount((components * n_classes + truth).ravel(), minlength=(count + 1) * n_classes)
    shared = pairs.reshape(count + 1, n_classes)  # elements of each component in each class
    best = 1 + shared[:, 1:].argmax(axis=1)
    best[(shared[:, 1:].sum(axis=1) == 0) | (shared.sum(axis=1) < MIN_COMPONENT)] = 0
    best[0] = 0  # what lies below the threshold
    return best[components].astype(np.uint8)


def otsu_components(image: np.ndarray, truth: np.ndarray, n_classes: int) -> np.ndarray:
    """The class map that thresholding gives when the truth helps it.

    Args:
        image: (H, W) or (X, Y, Z), any scale.
        truth: class map of the same shape, 0 for background.
        n_classes: background included.

    Returns:
        Class map, uint8, of the polarity (bright or dark foreground) with the better mean Dice; each
        component carries the one class that it overlaps most.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float64), SMOOTHING)
    bright = smooth > threshold_otsu(smooth)
    maps = [_name_components(foreground, truth, n_classes) for foreground in (bright, ~bright)]
    return max(maps, key=lambda pred: mean_dice(Case("", pred, truth)))


def compare_with_otsu(data: Path, segmentations: Path) -> tuple[float, float]:
    """Mean Dice of saved segmentations and of Otsu's threshold with components, over the held-out cases.

    Instance maps count as one class, cell or not.

    Args:
        data: the phantom's folder.
        segmentations: folder of `<case>_seg` files.

    Returns:
        (segmentations, Otsu), means over cases and foreground classes, in [0, 1].

    Raises:
        InputError: a held-out case has no segmentation.
    """
    description = read_json(data / "dataset.json")
    scores = []
    for listed in sections(data)["testing"]:
        found = output_path(segmentations, listed["case"], "seg", image_suffix(listed["image"]))
        if not found.is_file():
            raise InputError(f"{found}: no such segmentation; run inference on {data}/imagesTs first")
        case = read_values(Pair(listed["case"], found, Path(listed["label"])))
        if description.get("instances"):
            case = replace(case, pred=(case.pred > 0).astype(int), truth=(case.truth > 0).astype(int))
        otsu = otsu_components(
            read_image(Path(listed["image"])).mean(axis=0), case.truth, len(description["labels"])
        )
        scores.append([mean_dice(case), mean_dice(replace(case, pred=otsu))])
    unet, baseline = np.nanmean(scores, axis=0)
    return float(unet), float(baseline)


if __name__ == "__main__":
    unet, otsu = compare_with_otsu(*map(Path, sys.argv[1:]))
    typer.echo(f"Dice on the held-out cases: U-Net {unet:.3f}, Otsu and components {otsu:.3f}")
