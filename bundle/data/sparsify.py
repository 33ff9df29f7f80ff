"""`python -m bundle sparsify`: a data set with few of its voxels annotated, as if nobody had had more time.

How much is lost by annotating little is told by data that are annotated whole: their training and validation
cases lose most of their labels, those held out for testing keep all, to be judged by. What is left follows
from the case, the kind and the seed alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from bundle.data.corrupt import write_listing
from scripts.data.checks import read_label
from scripts.data.datalist import dataset_labels, sections
from scripts.data.names import output_name
from scripts.data.nifti import Nifti, write_result
from scripts.data.reader import read_file
from scripts.errors import InputError
from scripts.files import read_json, replace_folder, workshop
from scripts.labels import IGNORE_NAME, class_values, label_type
from scripts.progress import progress

#: Lines in the background run at this distance from the objects, in voxels.
NEAR = 3

#: Of a box the part of each side of the image.
BOX_SIDE = 0.5

Keep = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def _slices(foreground: np.ndarray, every: int, generator: np.random.Generator) -> np.ndarray:
    """Every so many slices along the last axis, from one that is drawn."""
    kept = np.zeros(foreground.shape, dtype=bool)
    kept[..., int(generator.integers(every)) :: every] = True
    return kept


def _planes(foreground: np.ndarray, every: int, generator: np.random.Generator) -> np.ndarray:
    """One slice across each axis, each through a voxel of an object that is drawn."""
    kept = np.zeros(foreground.shape, dtype=bool)
    places = np.argwhere(foreground)
    for axis in range(foreground.ndim):
        place = places[generator.integers(len(places))] if len(places) else np.array(kept.shape) // 2
        kept[(slice(None),) * axis + (place[axis],)] = True
    return kept


def _boxes(foreground: np.ndarray, every: int, generator: np.random.Generator) -> np.ndarray:
    """A box around a voxel of an object that is drawn, as far as the image allows."""
    kept = np.zeros(foreground.shape, dtype=bool)
    places = np.argwhere(foreground)
    centre = places[generator.integers(len(places))] if len(places) else np.array(kept.shape) // 2
    sides = np.maximum(np.round(BOX_SIDE * np.array(kept.shape)).astype(int), 1)
    start = np.clip(centre - sides // 2, 0, np.array(kept.shape) - sides)
    kept[tuple(slice(first, first + side) for first, side in zip(start, sides, strict=True))] = True
    return kept


def _scribbles(labels: np.ndarray, every: int, generator: np.random.Generator) -> np.ndarray:
    """Lines in every so many slices that show an object: the skeletons of classes, and as many voxels of
    background, in strokes around them that are NEAR voxels away."""
    kept = np.zeros(labels.shape, dtype=bool)
    planes = [kept] if labels.ndim == 2 else list(np.moveaxis(kept, -1, 0))
    shown = [labels] if labels.ndim == 2 else list(np.moveaxis(labels, -1, 0))
    full = [place for place, values in enumerate(shown) if values.any()]
    first = int(generator.integers(every)) if len(full) > every else 0
    for place in full[first :: every if labels.ndim == 3 else 1]:
        plane, values = planes[place], shown[place]
        for value in np.unique(values[values > 0]):
            plane |= skeletonize(values == value)
        wanted = plane.sum()
        away = ndimage.distance_transform_edt(values == 0)
        around = np.argwhere((away >= NEAR) & (away < NEAR + 1))
        left = np.ones(len(around), dtype=bool)
        while left.any() and (~left).sum() < wanted:
            middle = around[generator.choice(np.flatnonzero(left))]
            left &= np.abs(around - middle).max(1) > NEAR
        plane[tuple(around[~left].T)] = True
    return kept


#: Kinds by name; each takes labels, (*spatial), 0 in the background, and gives where they are kept.
KINDS: dict[str, Keep] = {"slices": _slices, "planes": _planes, "boxes": _boxes, "scribbles": _scribbles}


def sparsify(dataset_dir: Path, output_dir: Path, kind: str, every: int, seed: int) -> None:
    """Carry out `bundle.cli.sparsify`, whose arguments these are."""
    share = write_sparse(dataset_dir, output_dir, kind, every, seed)
    typer.echo(
        f"{output_dir / 'dataset.json'} lists images and labels, in which {share:.2%} of the voxels are "
        f"annotated. To plan a training:\npython -m bundle plan --dataset_dir {output_dir}"
    )


def write_sparse(dataset_dir: Path, output_dir: Path, kind: str, every: int = 5, seed: int = 0) -> float:
    """Write a data set in which the training and validation cases have sparse labels, all of it or nothing.

    Args:
        dataset_dir: folder with dataset.json; images and the other labels are named where they lie.
        output_dir: a new folder.
        kind: one of KINDS.
        every: of slices, and of those with scribbles.
        seed: 0 or more.

    Returns:
        The share of the voxels of these labels that are annotated.

    Raises:
        InputError: a folder that is there, labels that are sparse already, a kind that does not go with the
            data, a case without a label.
    """
    listed = sections(dataset_dir)
    path = dataset_dir / "dataset.json"
    about = read_json(path)
    labels = dataset_labels(about, path)
    instances = bool(about.get("instances"))
    if output_dir.exists():
        raise InputError(f"output_dir {str(output_dir)!r} is there already: name a new folder")
    if IGNORE_NAME in labels:
        raise InputError(
            f"{path} has the value {labels[IGNORE_NAME]} for what nobody annotated: name a data set that is "
            "annotated whole"
        )
    if instances and kind == "scribbles":
        raise InputError(f"{path} lists numbered objects; lines say nothing of them: --kind boxes or slices")
    background = 0 if instances else class_values(labels)[0] if labels else 0
    cases = [case for name in ("training", "validation") for case in listed[name]]

    def read(case: Mapping[str, Any]) -> np.ndarray:
        return read_label(Path(case["label"]), labels or None, instances)[0].astype(np.int64)

    held = set(labels.values())
    for case in progress(cases, desc="reading", unit="case"):
        if not case.get("label"):
            raise InputError(f"{path} lists {case['case']} without a label: add it, or leave the case out")
        whole = read(case)
        held |= set(np.unique(whole).tolist())
        if whole.ndim == 2 and kind in ("slices", "planes"):
            raise InputError(f"{path} lists pictures, which have no slices: --kind scribbles or boxes")
    ignored = 255 if 255 not in held else max(held) + 1
    annotated = total = 0
    with workshop(output_dir.parent) as place:
        made = place / "made"
        (made / "labels").mkdir(parents=True)
        entries = {}
        for case in progress(cases, desc=kind, unit="case"):
            whole = read(case)
            generator = np.random.default_rng([zlib.crc32(f"{kind} {case['case']}".encode()), seed])
            kept = KINDS[kind](np.where(whole == background, 0, whole + 1), every, generator)
            annotated, total = annotated + int(kept.sum()), total + kept.size
            sparse = np.where(kept, whole, ignored)
            name = _write(Path(case["label"]), sparse, made / "labels" / output_name(case["case"]))
            entries[case["case"]] = {**case, "label": f"labels/{name}"}
        named = {str(value): name for name, value in {**labels, IGNORE_NAME: ignored}.items()}
        sparse_cases = {
            name: [entries.get(case["case"], case) for case in cases] for name, cases in listed.items()
        }
        name = f"{about.get('name', dataset_dir.name)}, {kind}"
        write_listing(made, {**about, "name": name, "labels": named}, sparse_cases)
        replace_folder(made, output_dir)
    return annotated / total


def _write(file: Path, values: np.ndarray, place: Path) -> str:
    """Write a label in the form of its file, and give its name."""
    values = values.astype(label_type(values))
    read: Any = read_file(file)
    if isinstance(read, Nifti):
        header = read.header
        place = place.with_name(f"{place.name}.nii.gz")
        write_result(place, values, values.ndim, header.affine, header.form)
    else:
        place = place.with_name(f"{place.name}.png")
        Image.fromarray(np.ascontiguousarray(values.T)).save(place)
    return place.name
