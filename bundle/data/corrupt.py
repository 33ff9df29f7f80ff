"""`python -m bundle corrupt`: the cases of a data set as another scanner or a worse day would have them.

How a network does on data that it never saw is told by data of another place, or, where there are none, by
these: the same cases and labels, with images that are changed as MR images and micrographs are. Others are
wrong as files come out wrong, which a network is to be warned of: turned, cut, empty, of another contrast.
A case is changed by its name, the kind and the seed alone, whatever the other cases are; the same noise or
field gets stronger with the strength.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from monai.transforms import (
    GibbsNoise,
    RandBiasField,
    RandGaussianNoise,
    RandSimulateLowResolution,
    ScaleIntensityRange,
)
from PIL import Image
from scipy.ndimage import gaussian_filter

from bundle.made_of import write_record
from scripts.data.cases import describe_cases
from scripts.data.datalist import SPLITS, cases_of, output_name, sections
from scripts.data.nifti import Nifti, write_result
from scripts.data.pictures import Picture
from scripts.data.reader import read_file
from scripts.errors import Fault, InputError
from scripts.files import read_json, replace_folder, workshop
from scripts.progress import progress

#: Strengths, from hardly seen to clearly seen.
STRENGTHS = (1, 2, 3)

#: Percentiles of an image that count as its darkest and brightest; changes are measured by their distance.
RANGE = (0.5, 99.5)

#: What a dataset.json says of all its cases.
KEPT = ("labels", "instances", "modality", "channel_names")

Change = Callable[[torch.Tensor, int, np.random.RandomState], Any]


def _bias_field(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Brightness that changes slowly, by about 1.3, 1.8 and 2.5 times from the darkest place."""
    most = (0.04, 0.09, 0.14)[strength - 1] / (image.ndim - 2)  # a volume has twice the terms
    field = RandBiasField(prob=1.0, degree=3, coeff_range=(0.0, most))
    field.set_random_state(state=state)
    return field(image)


def _noise(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Gaussian noise of 5, 10 and 20 % of the range."""
    noise = RandGaussianNoise(prob=1.0, std=(0.05, 0.1, 0.2)[strength - 1], sample_std=False)
    noise.set_random_state(state=state)
    return noise(image)


def _blur(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """A Gaussian of 0.75, 1.5 and 3 voxels; MONAI's darkens the rim."""
    size = (0.75, 1.5, 3.0)[strength - 1]
    return np.stack([gaussian_filter(channel, size, mode="nearest") for channel in image.numpy()])


def _ringing(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Gibbs ringing: high frequencies are cut off, by 50, 65 and 80 % of the way."""
    return GibbsNoise((0.5, 0.65, 0.8)[strength - 1])(image)


def _inverted(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Contrast turned round, by a third, two thirds and all: what is bright becomes dark."""
    return image + (1 - 2 * image) * strength / len(STRENGTHS)


def _low_resolution(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Sampled at 2/3, 1/2 and 1/3 of the resolution, and enlarged again."""
    zoom = (2 / 3, 1 / 2, 1 / 3)[strength - 1]
    lower = RandSimulateLowResolution(
        prob=1.0,
        zoom_range=(zoom, zoom),
        downsample_mode="area",
        upsample_mode="bilinear" if image.ndim == 3 else "trilinear",
    )
    return lower(image)


def _ghosting(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Copies of the image along an axis, as a patient who breathes leaves them; of 0.4, 0.8 and 1.2."""
    ghosts, axis = int(state.randint(3, 7)), int(state.randint(image.ndim - 1))
    size = (0.4, 0.8, 1.2)[strength - 1]
    made = _torchio().transforms.Ghosting(num_ghosts=ghosts, axis=axis, intensity=size, restore=0.02)
    volume = image if image.ndim == 4 else image[..., None]
    return made(volume).reshape(image.shape)


def _motion(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """A head that moved twice while it was scanned, by up to 2, 4 and 8 degrees and voxels.

    It lay still while the middle of k-space was taken, which says where things are: labels keep their place.
    """
    size = (2.0, 4.0, 8.0)[strength - 1]
    degrees, translation = (size * state.uniform(-1, 1, (2, 3)) for _ in range(2))
    times = np.sort(state.uniform(0.55, 0.9, 2))
    if image.ndim == 3:  # within the plane of a picture, whose last axis is that of k-space too
        degrees[:, 1:], translation[:, 0] = 0, 0
    made = _torchio().transforms.Motion(
        degrees=degrees, translation=translation, times=times, image_interpolation="linear"
    )
    volume = image if image.ndim == 4 else image[:, None]
    return made(volume).reshape(image.shape)


def _clipped(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """What is brighter than 0.7, 0.5 and 0.3 of the range is all the same, as of too long an exposure."""
    return image.clamp(max=(0.7, 0.5, 0.3)[strength - 1])


def _contrast(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """Another modality, a third, two thirds and all of it: the middle is bright, what was bright is dark."""
    peak = state.uniform(0.3, 0.6)
    other = torch.where(image < peak, image / peak, (1 - image) / (1 - peak))
    return image + (other - image) * strength / len(STRENGTHS)


def _empty(image: torch.Tensor, strength: int, state: np.random.RandomState) -> Any:
    """A third, two thirds and all of what is to be seen is gone."""
    return image * (1 - strength / len(STRENGTHS))


#: Kinds by name; each takes an image, (C, *spatial), whose range is 0 to 1.
KINDS: dict[str, Change] = {
    "bias_field": _bias_field,
    "noise": _noise,
    "blur": _blur,
    "ringing": _ringing,
    "inverted": _inverted,
    "low_resolution": _low_resolution,
    "ghosting": _ghosting,
    "motion": _motion,
    "clipped": _clipped,
    "contrast": _contrast,
    "empty": _empty,
}


def _flipped(values: np.ndarray, axes: int, strength: int, state: np.random.RandomState) -> np.ndarray:
    """Along the first, second and third axis; a picture along both in place of the third."""
    return np.flip(values, strength - 1 if strength <= axes else tuple(range(axes)))


def _rotated(values: np.ndarray, axes: int, strength: int, state: np.random.RandomState) -> np.ndarray:
    """By 90 degrees in the plane of the first two axes, first and third, last two; a picture 90, 180, 270."""
    return np.rot90(values, strength) if axes == 2 else np.rot90(values, 1, PLANES[strength - 1])


def _cropped(values: np.ndarray, axes: int, strength: int, state: np.random.RandomState) -> np.ndarray:
    """A quarter, a third and half of it is cut off, at one end of one axis."""
    axis, end = int(state.randint(axes)), int(state.randint(2))
    size = values.shape[axis]
    cut = int(size * (1 / 4, 1 / 3, 1 / 2)[strength - 1])
    return np.take(values, range(cut, size) if end else range(size - cut), axis)


def _padded(values: np.ndarray, axes: int, strength: int, state: np.random.RandomState) -> np.ndarray:
    """An eighth, a quarter and half of each axis more on either side, as dark as the darkest."""
    sizes = [int(size * (1 / 8, 1 / 4, 1 / 2)[strength - 1]) for size in values.shape[:axes]]
    wide = [(size, size) for size in sizes] + [(0, 0)] * (values.ndim - axes)
    return np.pad(values, wide, constant_values=values.min())


def _spacing(values: np.ndarray, axes: int, strength: int, state: np.random.RandomState) -> np.ndarray:
    """The header has edges of voxels 1.25, 1.5 and 2 times as long, along one axis: see `_write`."""
    return values


Move = Callable[[np.ndarray, int, int, np.random.RandomState], np.ndarray]

#: Kinds that labels go along with; each takes values, (*spatial) or (*spatial, channel), and how many axes
#: are spatial.
MOVES: dict[str, Move] = {
    "flipped": _flipped,
    "rotated": _rotated,
    "cropped": _cropped,
    "padded": _padded,
    "spacing": _spacing,
}

#: What volumes are rotated in.
PLANES = ((0, 1), (0, 2), (1, 2))


def corrupt(dataset_dir: Path, output_dir: Path, kind: str, strength: int, section: str, seed: int) -> None:
    """Carry out `bundle.cli.corrupt`, whose arguments these are."""
    write_corrupted(dataset_dir, output_dir, kind, strength, section, seed)
    typer.echo(f"{output_dir / 'dataset.json'} lists the changed images and the labels as they were.")


def write_corrupted(
    dataset_dir: Path, output_dir: Path, kind: str, strength: int, section: str, seed: int = 0
) -> None:
    """Write a data set in which the images of a section are changed, all of it or nothing.

    Args:
        dataset_dir: folder with dataset.json; labels that stay as they are are named where they lie.
        output_dir: a new folder.
        kind: one of KINDS or MOVES; the labels of the latter are changed too, and written.
        strength: one of STRENGTHS.
        section: "testing", "validation" or "training", whose images are changed; the others are listed too.
        seed: 0 or more.

    Raises:
        InputError: no such section, a folder that is there, an image that cannot be read.
    """
    listed = sections(dataset_dir)
    cases_of(listed, section)
    about = read_json(dataset_dir / "dataset.json")
    if output_dir.exists():
        raise InputError(f"output_dir {str(output_dir)!r} is there already: name a new folder")
    if kind in ("ghosting", "motion"):
        _torchio()
    with workshop(output_dir.parent) as place:
        made = place / "made"
        (made / "images").mkdir(parents=True)
        entries = []
        for case in progress(listed[section], desc=f"{kind} {strength}", unit="case"):
            files = case["image"] if isinstance(case["image"], list) else [case["image"]]
            images = []
            for channel, file in enumerate(files):
                place = made / "images" / f"{output_name(case['case'])}_{channel:04d}"
                drawn = output_name(case["case"]) if kind in MOVES else place.name
                images.append(f"images/{_write(Path(file), place, drawn, kind, strength, seed)}")
            made_of: dict[str, Any] = {"image": images if isinstance(case["image"], list) else images[0]}
            if kind in MOVES and "label" in case:
                name, label = output_name(case["case"]), Path(case["label"])
                (made / "labels").mkdir(exist_ok=True)
                made_of["label"] = (
                    f"labels/{_write(label, made / 'labels' / name, name, kind, strength, seed)}"
                )
            entries.append({**case, **made_of})
        name = f"{about.get('name', dataset_dir.name)}, {kind} {strength}"
        write_listing(made, {**about, "name": name}, {**listed, section: entries})
        write_record(made, corrupted_of(dataset_dir, kind, strength, section, seed))
        replace_folder(made, output_dir)


def write_listing(
    folder: Path, about: Mapping[str, Any], listed: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Write dataset.json and splits.json for cases that were changed.

    Args:
        folder: where they go.
        about: content of the dataset.json that they come from, with a name of their own.
        listed: cases of each section.
    """
    kept = {key: about[key] for key in ("name", *KEPT) if key in about}
    cases = [case for entries in listed.values() for case in entries]
    splits = {key: [case["case"] for case in listed[name]] for key, name in SPLITS.items()}
    for name, content in (("dataset", {**kept, "training": cases}), ("splits", splits)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def corrupted_of(
    dataset_dir: Path, kind: str, strength: int, section: str, seed: int = 0
) -> dict[str, str | int]:
    """What a changed data set is made of; arguments are those of `write_corrupted`."""
    cases = describe_cases(cases_of(sections(dataset_dir), section))
    return {"cases": cases, "kind": str(kind), "strength": strength, "section": str(section), "seed": seed}


def changed(
    values: np.ndarray, channels_last: bool, name: str, kind: str, strength: int, seed: int = 0
) -> Any:
    """Values of an image, changed; of the type that they have, and the shape but for kinds of MOVES.

    Args:
        values: (*spatial) or (*spatial, channel).
        channels_last: whether the last axis holds channels.
        name: of the case, which with kind and seed says what is drawn.
        kind: one of KINDS or MOVES.
        strength: one of STRENGTHS.
        seed: 0 or more.
    """
    state = _state(name, kind, seed)
    if kind in MOVES:
        return MOVES[kind](values, values.ndim - channels_last, strength, state)
    image = np.moveaxis(values, -1, 0) if channels_last else values[None]
    low, high = (float(edge) for edge in np.percentile(image, RANGE))
    if not high > low:
        low, high = float(image.min()), float(max(image.max(), image.min() + 1))
    scaled = ScaleIntensityRange(low, high, 0.0, 1.0)(torch.as_tensor(image.astype(np.float32)))
    made = np.asarray(KINDS[kind](torch.as_tensor(np.asarray(scaled)), strength, state)) * (high - low) + low
    if np.issubdtype(values.dtype, np.integer):
        limits = np.iinfo(values.dtype)
        made = np.clip(np.rint(made), limits.min, limits.max)
    made = made.astype(values.dtype)
    return np.moveaxis(made, 0, -1) if channels_last else made[0]


def _state(name: str, kind: str, seed: int) -> np.random.RandomState:
    """What the changes of a case are drawn from."""
    return np.random.RandomState(zlib.crc32(f"{kind} {seed} {name}".encode()))


def _write(file: Path, place: Path, drawn: str, kind: str, strength: int, seed: int) -> str:
    """Write what a file becomes beside `place`, and give its name; by the name `drawn` is drawn."""
    try:
        read = read_file(file)
    except (Fault, OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{file} cannot be read ({error}): mend it, or leave the case out") from error
    channels = read.header.channels is not None if isinstance(read, Nifti) else read.values.ndim == 3
    values = changed(read.values, channels, drawn, kind, strength, seed)
    if isinstance(read, Picture):
        if kind == "spacing":
            raise InputError(f"{file} is {read.kind}, which has no spacing: choose another kind")
        if values.ndim == 3 and (values.dtype != np.uint8 or read.mode not in ("RGB", "RGBA")):
            raise InputError(f"{file} is {read.kind}: only grey and RGB pictures of 8 bits can be changed")
        if values.dtype not in (np.uint8, np.uint16) or read.inverted or read.mode == "P":
            raise InputError(f"{file} is {read.kind}: save it as a grey or RGB PNG")
        Image.fromarray(np.ascontiguousarray(np.swapaxes(values, 0, 1))).save(
            place.with_name(f"{place.name}.png")
        )
        return f"{place.name}.png"
    if values.dtype.byteorder == ">" or values.dtype == np.float64:
        values = values.astype(np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("="))
    affine: np.ndarray = read.header.affine
    form: np.ndarray | None = read.header.form
    if kind == "spacing":
        axis = _state(drawn, kind, seed).randint(3)
        affine, form = affine.copy(), None
        affine[:3, axis] *= (1.25, 1.5, 2.0)[strength - 1]
    write_result(place.with_name(f"{place.name}.nii.gz"), values, len(read.header.shape), affine, form)
    return f"{place.name}.nii.gz"


def _torchio() -> Any:
    """TorchIO, which has what MONAI lacks.

    Raises:
        InputError: it is not installed.
    """
    try:
        import torchio
    except ImportError as error:
        raise InputError(
            "ghosting and motion need torchio, which is not installed: pip install --no-deps -r "
            "requirements-benchmark.txt"
        ) from error
    return torchio
